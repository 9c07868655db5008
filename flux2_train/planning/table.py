"""Plans as text: the parts of one plan, and a table of flavours and cards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..adapters.targets import select
from ..errors import UserError
from ..flavours import Flavour
from ..formats import AS_IN_FILE, ROWS, tiers
from .cards import split
from .estimate import Estimate
from .planner import FREE, GB, Pins, Plan, choose, lora_sites, needed
from .weights import Weights, of_flavour
from .work import PINNED_SHARE, Machine, Work

CARDS = (8, 12, 16, 24, 32, 48)  # GiB
RESOLUTIONS = (512, 1024)
TAKEN = 1e9  # bytes of a card that the system and CUDA itself hold
ASSUMED = Machine(0.0)  # the machine around a card that is not in this computer
# Precisions that comfy-kitchen dequantises in one step, with the CUDA 13 that ComfyUI comes with.
KERNELS = tuple(row.name for row in ROWS if row.kernel)
TRIED = tiers(tuple(row for row in ROWS if row.in_table))  # the fastest plan of the first group with one that fits


@dataclass(frozen=True)
class Question:
    """What to plan for, apart from flavour and card.

    ``there``: the machine around the card. ``kernels``: the precisions that are dequantised in one step. ``file``: a
    transformer's file, which is planned for as it is stored. ``shares``: among how many processes, with a card each,
    the base is shared; the bus is then the way from card to card. ``cards``: over how many equal cards its blocks are
    split in one process. ``accumulate``: batches per step.
    """

    rank: int = 16
    batch: int = 1
    targets: str = "all"
    optimizer: str = "adamw"
    precision: str = ""
    there: Machine = ASSUMED
    kernels: tuple[str, ...] = KERNELS
    file: Weights | None = None
    shares: int = 1
    cards: int = 1
    accumulate: int = 1


def pins_of(row: Flavour, question: Question) -> Pins:
    """A shared base shares every block; otherwise all is left to the planner."""
    return Pins(streamed=row.double_blocks + row.single_blocks) if question.shares > 1 else FREE


def work_of(row: Flavour, precision: str, resolution: int, question: Question) -> Work:
    """A run on square images with a plain LoRA. With ``AS_IN_FILE`` it is planned for the question's file."""
    own = question.file if precision == AS_IN_FILE else None
    weights, precision = (own, own.format) if own else (of_flavour(row, precision), precision)
    sites = lora_sites(weights, select(weights.linears, question.targets), question.rank)
    sizes = [weights.linears[name] for name in sites]
    edges = sum(into + out + 2 * question.rank for into, out in sizes)
    return Work(weights, sites, (resolution // 16) ** 2, row.text_length, question.batch, question.accumulate,
                optimizer=question.optimizer, precision=precision, edges=edges,
                begun=question.rank * sum(into for into, _ in sizes), in_one_step=precision in question.kernels,
                shares=question.shares, cards=_split(weights, question.cards))  # fmt: skip


def _split(weights: Weights, cards: int) -> tuple[int, ...]:
    """The blocks on each of so many equal cards; empty for one card."""
    blocks = weights.block_bytes()
    return split(blocks, weights.total - sum(blocks), [1.0] * cards) if cards > 1 else ()


def machine_of(card: float, question: Question) -> Machine:
    """A card of so many GiB, with nothing else on it, and others like it over which the model is split."""
    pinned, free = min(question.there.pinned, PINNED_SHARE * question.there.ram), card * 2**30 - TAKEN
    others = (free,) * (question.cards - 1)
    return replace(question.there, vram=free, withheld=0.0, pinned=pinned, others=others)


def best(row: Flavour, resolution: int, card: float, question: Question) -> tuple[str, Plan] | None:
    """The fastest plan and its precision, the most precise of equally fast ones; None if nothing fits."""
    tried = ((question.precision,),) if question.precision else ((AS_IN_FILE,),) if question.file else TRIED
    for precisions in tried:
        plans = []
        for precision in precisions:
            try:
                work = work_of(row, precision, resolution, question)
                plan = choose(work, machine_of(card, question), pins_of(row, question))
            except UserError:
                continue
            plans.append((precision, plan))
        if plans:
            return min(plans, key=lambda entry: entry[1].estimate.seconds)
    return None


def cards(rows: Iterable[Flavour], question: Question, sizes: Sequence[int] = CARDS) -> str:
    """A Markdown table: for each flavour and resolution, the plan that is chosen on cards of these sizes."""
    lines = ["| | " + " | ".join(f"{size} GB" for size in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for row in rows:
        for resolution in RESOLUTIONS:
            cells = [_cell(best(row, resolution, size, question), question.file) for size in sizes]
            lines.append(f"| {row.name}, {resolution} px | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(choice: tuple[str, Plan] | None, file: Weights | None) -> str:
    if choice is None:
        return "no"
    precision, plan = choice
    precision = file.format if file and precision == AS_IN_FILE else precision
    streamed = f" {len(plan.layout.streamed)}s" if plan.layout.streamed else ""
    return f"{precision.split()[0]}{streamed}, {plan.estimate.seconds:.1f} s"


def parts(plan: Plan, blocks: int, split_over: Sequence[int] = ()) -> str:
    """A plan as lines of text: its layout, the bytes of every part, and the expected time.

    ``split_over``: how many blocks lie on each card, empty for one. The parts are then those of the first card.
    """
    estimate = plan.estimate
    lines = [plan.layout.describe(blocks)]
    lines += [f"{name:12} {size / GB:7.2f} GB" for name, size in estimate.parts.items() if size]
    lines.append(f"{'peak':12} {estimate.peak / GB:7.2f} GB, {needed(estimate) / GB:.2f} GB with a margin")
    lines += [f"{name:12} {size / GB:7.2f} GB in host memory" for name, size in estimate.host.items() if size]
    if estimate.disk:
        lines.append(f"{'weights':12} {estimate.disk / GB:7.2f} GB for which host memory has no room: read from disk")
    if split_over:
        lines[1:] = [
            f"card 1 of {len(split_over)}: {split_over[0]} blocks and what comes before them",
            *lines[1:],
        ]
        lines += [*_other_cards(estimate, split_over), _at_a_time(plan.layout.in_flight)]
    lines.append(f"{'time':12} {estimate.seconds:7.2f} s per step, limited by {estimate.limit}")
    return "\n".join(lines)


def _at_a_time(in_flight: int) -> str:
    """Whether the cards of a plan work at the same time."""
    if in_flight == 1:
        return "one card works at a time: they add memory, not speed"
    return f"{in_flight} passes in flight: while a card computes for one of them, the others compute for others"


def _other_cards(first: Estimate, split_over: Sequence[int]) -> Iterator[str]:
    """A line for each card but the first: what lies on it, and its peak."""
    for number, (own, blocks) in enumerate(zip(first.others, split_over[1:], strict=True), 2):
        held = ", ".join(f"{name} {size / GB:.2f}" for name, size in own.parts.items() if size)
        peak = f"peak {own.peak / GB:.2f} GB, {needed(own) / GB:.2f} GB with a margin"
        yield f"card {number} of {len(split_over)}: {blocks} blocks; {held}; {peak}"
