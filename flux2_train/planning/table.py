"""Plans as text: the parts of one, and one line per flavour for cards of every size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..adapters.targets import select
from ..errors import UserError
from ..flavours import Flavour
from ..formats import AS_IN_FILE, ROWS, tiers
from .estimate import PINNED_SHARE, Machine, Work
from .planner import GB, Plan, choose, lora_sites, needed
from .weights import Weights, of_flavour

CARDS = (8, 12, 16, 24, 32, 48)  # GiB
RESOLUTIONS = (512, 1024)
TAKEN = 1e9  # bytes of a card that the system and CUDA itself hold
ASSUMED = Machine(0.0)  # around a card that is not here
# What comfy-kitchen dequantises in one step, with CUDA 13 as ComfyUI comes with it.
KERNELS = tuple(row.name for row in ROWS if row.kernel)
TRIED = tiers(tuple(row for row in ROWS if row.in_table))  # the fastest of the first that fits; or of the next


@dataclass(frozen=True)
class Question:
    """What shall be planned, beside flavour and card. ``file`` is a transformer's file, planned for as it is stored.

    ``there`` is the machine around the card, ``kernels`` the precisions that are dequantised in one step.
    """

    rank: int = 16
    batch: int = 1
    targets: str = "all"
    optimizer: str = "adamw"
    precision: str = ""
    there: Machine = ASSUMED
    kernels: tuple[str, ...] = KERNELS
    file: Weights | None = None


def work_of(row: Flavour, precision: str, resolution: int, asked: Question) -> Work:
    """A run on square images with a plain LoRA. A file is planned for with its own precision, ``AS_IN_FILE``."""
    own = asked.file if precision == AS_IN_FILE else None
    weights, precision = (own, own.format) if own else (of_flavour(row, precision), precision)
    sites = lora_sites(weights, select(weights.linears, asked.targets), asked.rank)
    sizes = [weights.linears[name] for name in sites]
    edges = sum(into + out + 2 * asked.rank for into, out in sizes)
    return Work(weights, sites, (resolution // 16) ** 2, batch=asked.batch, optimizer=asked.optimizer,
                precision=precision, edges=edges, begun=asked.rank * sum(into for into, _ in sizes),
                in_one_step=precision in asked.kernels)  # fmt: skip


def machine_of(card: float, asked: Question) -> Machine:
    """A card of so many GiB, with nothing else on it."""
    pinned = min(asked.there.pinned, PINNED_SHARE * asked.there.ram)
    return replace(asked.there, vram=card * 2**30 - TAKEN, withheld=0.0, pinned=pinned)


def best(row: Flavour, resolution: int, card: float, asked: Question) -> tuple[str, Plan] | None:
    """Precision and plan: the fastest, and of equally fast ones the most precise; None where nothing fits."""
    tried = ((asked.precision,),) if asked.precision else ((AS_IN_FILE,),) if asked.file else TRIED
    for precisions in tried:
        found = []
        for precision in precisions:
            try:
                plan = choose(work_of(row, precision, resolution, asked), machine_of(card, asked))
            except UserError:
                continue
            found.append((precision, plan))
        if found:
            return min(found, key=lambda entry: entry[1].estimate.seconds)
    return None


def cards(rows: Iterable[Flavour], asked: Question, sizes: Sequence[int] = CARDS) -> str:
    """Markdown: for each flavour and resolution what is chosen on cards of these sizes."""
    lines = ["| | " + " | ".join(f"{size} GB" for size in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for row in rows:
        for resolution in RESOLUTIONS:
            cells = [_cell(best(row, resolution, size, asked), asked.file) for size in sizes]
            lines.append(f"| {row.name}, {resolution} px | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: tuple[str, Plan] | None, file: Weights | None) -> str:
    if found is None:
        return "no"
    precision, plan = found
    precision = file.format if file and precision == AS_IN_FILE else precision
    streamed = f" {len(plan.layout.streamed)}s" if plan.layout.streamed else ""
    return f"{precision.split()[0]}{streamed}, {plan.estimate.seconds:.1f} s"


def parts(plan: Plan, blocks: int) -> str:
    """A plan in lines: how it is laid out, the bytes of every part, and the expected time."""
    found = plan.estimate
    lines = [plan.layout.describe(blocks)]
    lines += [f"{name:12} {size / GB:7.2f} GB" for name, size in found.parts.items() if size]
    lines.append(f"{'peak':12} {found.peak / GB:7.2f} GB, {needed(found) / GB:.2f} GB with a margin")
    lines += [f"{name:12} {size / GB:7.2f} GB in host memory" for name, size in found.host.items() if size]
    lines.append(f"{'time':12} {found.seconds:7.2f} s per step, limited by {found.limit}")
    return "\n".join(lines)
