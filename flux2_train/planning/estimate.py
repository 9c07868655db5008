"""What a run takes in a given layout: bytes of every part, seconds per step and what limits them. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from ..formats import dequantising
from . import cards
from .activations import ROPE, Block, Numbers, Tokens, double_block, single_block
from .layout import SELECTIVE, SLOTS, UNREAD, Layout, groups
from .work import AT_ONCE, Machine, Work

IN_INT8 = 13  # bytes for each number that is converted at a time: in int8, int32, fp32, and rotated in fp32 again
IN_ONE_STEP = 2  # formats.Precision.dequantising where a kernel dequantises in one step
OVERLAP = 1.15  # a step with transfers beside arithmetic takes this many times the longer of both: bench/gpu checks it


@dataclass(frozen=True)
class Estimate:
    """Bytes of every part on the device and in host memory; seconds per step of arithmetic and of transfers.

    ``traffic``: bytes over the bus in a step. ``disk``: bytes of streamed weights that host memory has no room for.
    ``others``: if the model is split over several cards, what each of the others takes; the seconds are of all.
    """

    parts: dict[str, int]
    host: dict[str, int]
    compute: float
    transfer: float
    traffic: int
    disk: int = 0
    others: tuple[Estimate, ...] = ()

    @property
    def peak(self) -> int:
        """Most bytes on the device at one time."""
        return sum(self.parts.values())

    @property
    def host_peak(self) -> int:
        """Most bytes that training holds in host memory."""
        return sum(self.host.values())

    @property
    def seconds(self) -> float:
        """Seconds per step: transfers run beside the arithmetic, so it is the longer of both and a little more."""
        return max(self.compute, self.transfer) * (OVERLAP if self.transfer else 1)

    @property
    def limit(self) -> str:
        """What limits the speed of a step: the bus, the disk or arithmetic."""
        moving = "disk" if self.disk else "bus"
        return moving if self.transfer > self.compute else "arithmetic"


def estimate(work: Work, layout: Layout, machine: Machine) -> Estimate:
    """What ``work`` takes in this layout on ``machine``."""
    if work.cards:
        return _over_cards(work, layout, machine)
    blocks = blocks_of(work, tokens_of(work, layout))
    streamed = [block_bytes(work)[number] for number in layout.streamed]
    ring, staying = ring_bytes(work, layout)
    offloaded = layout.in_flight * sum(block.inputs for block in blocks) if layout.offload_activations else 0
    parts = {
        "weights": work.weights.total - sum(streamed) + _shared(work, sum(streamed)),
        "streaming": ring,
        "adapters": 4 * work.parameters * (2 if work.ema else 1),
        "optimizer": optimizer_bytes(work),
        **_moment(work, layout, blocks),
    }
    if offloaded:
        parts["activations"] += 2 * max(block.inputs for block in blocks) - offloaded
    parts["previews"] = _preview(work, parts)
    traffic = _received(work, transferred(work, layout, sum(streamed), staying))
    compute = operations(work, layout) / machine.flops
    # There and back, always through pinned memory
    moved = 2 * offloaded / layout.in_flight * work.passes.trained * rounds_of(work, layout)
    away = sum(streamed) if work.shares == 1 else 0  # in host memory
    room = max(0.0, machine.ram - offloaded)
    disk = round(max(0.0, away - room)) if work.weights.mapped else 0
    host = {"streamed weights": away - disk, "offloaded activations": offloaded}
    transfer = machine.seconds_to_stream(traffic, away, bool(disk)) + moved / machine.bus
    return Estimate(parts, host, compute, transfer, round(traffic + moved), disk)


def _over_cards(work: Work, layout: Layout, machine: Machine) -> Estimate:
    parts = zip(cards.works(work), cards.layouts(work, layout), strict=True)
    first, *others = each = [estimate(part, own, machine) for part, own in parts]
    host = {name: sum(one.host[name] for one in each) for name in first.host}
    # Copied there once and read no more where they are mapped from a file; else they stay in host memory, too.
    host["other cards"] = 0 if work.weights.mapped else sum(one.parts["weights"] for one in others)
    passes = cards.passes(work, rounds_of(work, layout))
    return replace(
        first, host=host, compute=cards.seconds([one.compute for one in each], passes, layout.in_flight),
        transfer=cards.seconds([one.transfer for one in each], passes, layout.in_flight),
        traffic=sum(one.traffic for one in each), disk=sum(one.disk for one in each), others=tuple(others),
    )  # fmt: skip


# Bytes that each optimizer keeps, beside the trained numbers and their gradients (both fp32). adamw8bit: two bytes for
# each number, and two fp32 scales for every 256 of them. adafactor: a number for each row and each column. prodigy:
# also the starting values of the numbers that do not start at zero. other: as measured, else as adamw.
OPTIMIZER_STATE: dict[str, Callable[[Work], float]] = {
    "adamw": lambda work: 8 * work.parameters,
    "adamw8bit": lambda work: (2 + 8 / 256) * work.parameters,
    "adafactor": lambda work: 4 * work.edges,
    "prodigy": lambda work: 12 * work.parameters + 4 * work.begun,
    "lion": lambda work: 4 * work.parameters,
    "schedulefree": lambda work: 8 * work.parameters,
    "other": lambda work: work.optimizer_state or 8 * work.parameters,
}


def _shared(work: Work, streamed: int) -> int:
    """Bytes of the streamed weights that this process keeps on its device."""
    return -(-streamed // work.shares) if work.shares > 1 else 0


def _received(work: Work, fetched: int) -> int:
    """Bytes of the fetched weights that come from elsewhere: of shared ones all but the own part."""
    return fetched * (work.shares - 1) // work.shares if work.shares > 1 else fetched


def _cast(work: Work) -> int:
    """Bytes of LoRA's matrices in the dtype of computation, in which they are kept for a step."""
    return work.size * work.parameters if work.size < 4 and _numbers(work).added else 0


def _numbers(work: Work) -> Numbers:
    return Numbers(work.weights.hidden, work.size, work.fp32_adapters, work.kind)


def optimizer_bytes(work: Work) -> int:
    """Bytes that the optimizer keeps between steps."""
    return round(OPTIMIZER_STATE[work.optimizer](work))


def rounds_of(work: Work, layout: Layout) -> int:
    """How many times a step runs the model: once for each micro-batch of each batch."""
    return work.accumulate * -(-work.batch // layout.micro_batch)


def tokens_of(work: Work, layout: Layout) -> Tokens:
    """The tokens that are in memory at one time."""
    return Tokens(min(layout.micro_batch, work.batch) * work.passes.graphs, work.image, work.text)


@lru_cache(maxsize=64)
def block_bytes(work: Work) -> list[int]:
    """Stored bytes of every block."""
    return work.weights.block_bytes()


@lru_cache(maxsize=64)
def blocks_of(work: Work, tokens: Tokens) -> list[Block]:
    """Bytes of every block's activations."""
    numbers = _numbers(work)
    blocks, first = [], True
    for number, block in enumerate(work.weights.blocks):
        start = len(block) + 1
        sites = {name[start:]: site for name, site in work.sites.items() if name.startswith(f"{block}.")}
        wide = {name[start:]: _dequantised(work, name) for name in work.weights.inside(block)}
        count = double_block if block.startswith("double") else single_block
        blocks.append(
            count(numbers, replace(tokens, image=work.image_at(number, work.always_routed)), sites, first, wide)
        )
        first = first and not sites
        if first:  # nothing before the first adapter has a gradient
            blocks[-1] = replace(blocks[-1], kept=0)
    return blocks


def _dequantised(work: Work, linear: str) -> int:
    into, out = work.weights.linears[linear]
    in_int8 = out * into + IN_INT8 * min(AT_ONCE, out * into) if work.eight_bit else 0
    if linear in work.weights.plain and work.size == 2:
        return in_int8
    steps = dequantising(work.precision)
    return (min(steps, IN_ONE_STEP) if work.in_one_step else steps) * work.size * out * into + in_int8


def _moment(work: Work, layout: Layout, blocks: list[Block]) -> dict[str, int]:
    """Activations, workspace and gradients at the moment at which their sum is largest.

    Backward goes from the last block to the first: gradients are added while activations are freed. From the second
    pass of a step on, all gradients exist from the start.
    """
    tokens, every = tokens_of(work, layout), 4 * work.parameters
    earlier = every if work.passes.trained * rounds_of(work, layout) > 1 else 0  # gradients of an earlier pass
    own = _gradients(work)
    # kept outside of blocks: rotary embeddings, the copy of the image that the last norm reads, cast matrices
    saved = tokens.all * ROPE + tokens.batch * tokens.image * work.weights.hidden * work.size + _skipping(work, tokens)
    saved += _cast(work)
    moments = [{"gradients": every, "activations": _cast(work), "workspace": every}]  # the optimizer's step
    for number, block in enumerate(blocks):
        kept = _kept(layout, number, block)
        inside = block.top + (kept if layout.recomputes(number) else 0)
        done = max(earlier, sum(own[number + 1 :]))
        moments.append({"gradients": done, "activations": saved, "workspace": max(inside, kept)})
        if layout.recomputes(number):
            moments[-1]["activations"] += kept
            moments[-1]["workspace"] -= kept
        saved += kept
    for moment in moments[1:]:  # of every other pass in flight all is kept, at most
        moment["activations"] += (layout.in_flight - 1) * (saved - _cast(work))
    return max(moments, key=lambda moment: sum(moment.values()))


def _skipping(work: Work, tokens: Tokens) -> int:
    """Bytes that a route keeps beside its blocks: the tokens that wait or their gradients, and its own rotations."""
    kept = [work.image_at(first, True) for first, _, _ in work.routes] if work.always_routed else []
    waiting = tokens.image * work.weights.hidden * work.size if kept else 0
    return round(tokens.batch * (waiting + sum(image + tokens.text for image in kept) * ROPE))


def _gradients(work: Work) -> list[int]:
    """Bytes of the gradients that each block's backward makes."""
    return [sum(4 * work.sites[n][1] for n in inside if n in work.sites) for inside in _inside(work).values()]


def _kept(layout: Layout, number: int, block: Block) -> int:
    if not layout.recomputes(number):
        return block.kept
    return block.inputs + (block.attention if layout.checkpointing == SELECTIVE else 0)


def _preview(work: Work, parts: dict[str, int]) -> int:
    """Bytes that a preview needs beyond those that training has freed; for the VAE ComfyUI moves the weights away."""
    tokens = Tokens(1, work.preview, work.text)
    painting = 31 * tokens.all * work.weights.hidden * work.size if work.preview else 0
    free = parts["activations"] + parts["workspace"]
    return max(0, painting - free, work.decoding - free - parts["weights"])


@lru_cache(maxsize=64)
def _inside(work: Work) -> dict[str, list[str]]:
    return {block: work.weights.inside(block) for block in work.weights.blocks}


def ring_bytes(work: Work, layout: Layout) -> tuple[int, float]:
    """Bytes of the ring of buffers, and of the groups that are still in it when forward turns to backward or back.

    Those groups are not fetched again: the last ones where backward begins, the first ones where it ends. The mean of
    both is returned.
    """
    stored, inside = work.weights.stored, _inside(work)
    sizes = [sum(stored[n] for n in group) for group in groups(layout, list(inside), inside)]
    slots = min(SLOTS, len(sizes))
    return (slots * max(sizes), (sum(sizes[:slots]) + sum(sizes[-slots:])) / 2) if sizes else (0, 0.0)


def transferred(work: Work, layout: Layout, streamed: int, staying: float) -> int:
    """Bytes of weights over the bus in a step. A pass with gradients fetches all twice, a pass without once.

    At both turns of a pass with gradients the ``staying`` bytes in the ring are used again.
    """
    if not streamed:
        return 0
    per_pass = 2 * max(0, streamed - staying) * work.passes.trained + streamed * work.passes.plain
    return round(per_pass * rounds_of(work, layout))


def operations(work: Work, layout: Layout) -> float:
    """Floating-point operations of a step, on average over routed steps and others."""
    shares = {True: work.routed, False: 1 - work.routed}
    return sum(share * _operations(work, layout, routed) for routed, share in shares.items() if share)


def _operations(work: Work, layout: Layout, routed: bool) -> float:
    """Floating-point operations of a step: two for each weight and token, four for each pair of tokens and channel.

    In forwards: forward is 1; backward is 1 for frozen Linears, whose weights get no gradient, and 2.5 for attention
    (Dao 2023); recomputation is 1, but for Linears whose outputs it leaves out; adapters are 3 in total.
    """
    per_block, attention, unread, adapters = _forward(work, routed)
    trained = 3 * adapters
    for number, block in enumerate(per_block):
        trained += 2 * block + 3.5 * attention[number]
        if layout.recomputes(number):
            trained += block - unread[number] + (0 if layout.checkpointing == SELECTIVE else attention[number])
    forward = sum(per_block) + sum(attention) + adapters
    samples = work.batch * work.accumulate
    return samples * (work.passes.trained * work.passes.graphs * trained + work.passes.plain * forward)


@lru_cache(maxsize=64)
def _forward(work: Work, routed: bool) -> tuple[list[float], list[float], list[float], float]:
    """Operations of one sample's forward pass: each block's Linears, attention and UNREAD Linears, and all adapters."""
    per_block, attention, unread, adapters = [], [], [], 0.0
    for number, inside in enumerate(_inside(work).values()):
        image, read = work.image_at(number, routed), _read(work, number, routed)
        seen = {name: _seen(work, name, image) for name in inside}
        attention.append(4.0 * (image + work.text) * read * work.weights.hidden)
        of_linear = {name: 2.0 * _multiplied(work, name, seen[name], min(seen[name], read)) for name in inside}
        per_block.append(sum(of_linear.values()))
        unread.append(sum(of_linear[name] for name in inside if name.endswith(UNREAD) and _only_added_to(work, name)))
        adapters += sum(2.0 * seen[name] * work.sites[name][1] for name in inside if name in work.sites)
    return per_block, attention, unread, adapters


def _read(work: Work, block: int, routed: bool) -> int:
    """Tokens whose outputs are read of a block: all, but in the last one the image's, see ``host.borrowed.last_block``.

    All of them too where a route ends with the last block.
    """
    image = work.image_at(block, routed)
    on_route = routed and any(first <= block <= last for first, last, _ in work.routes)
    is_last = block == len(_inside(work)) - 1 and any(name.startswith(cards.LAST) for name in work.weights.linears)
    return image - work.references if is_last and not on_route else image + work.text


def _multiplied(work: Work, linear: str, seen: int, read: int) -> int:
    """Numbers of a weight times tokens that are multiplied by them. Tokens that nobody reads give keys and values."""
    keys_and_values = 2 * work.weights.hidden**2 if linear.endswith("linear1") else 0
    return read * math.prod(work.weights.linears[linear]) + (seen - read) * keys_and_values


def _only_added_to(work: Work, linear: str) -> bool:
    return linear not in work.sites or work.kind != "dora"


def _seen(work: Work, linear: str, image: int) -> int:
    """Tokens of one sample that a Linear sees in a block with so many ``image`` tokens."""
    if not linear.startswith("double"):
        return image + work.text
    return image if ".img_" in linear else work.text
