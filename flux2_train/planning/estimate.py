"""What a layout of a run takes: bytes of every part, and seconds per step with what limits them. Arithmetic only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ..formats import dequantising
from .activations import ROPE, Block, Numbers, Tokens, double_block, single_block
from .layout import SELECTIVE, SLOTS, Layout, groups
from .weights import Weights

IN_ONE_STEP = 2  # formats.Precision.dequantising, where there is a kernel for it
PINNED_SHARE = 0.5  # of the host's memory that is free or holds these weights already
UNPINNED = 1 / 3  # of the rate of pinned memory, where other memory's is not measured
OVERLAP = 1.15  # transfers beside arithmetic may cost so many times the longer of both: bench/gpu checks it


@dataclass(frozen=True)
class Passes:
    """How often the model runs in a step, on average: with and without gradients. ``graphs`` live at the same time."""

    trained: float = 1.0
    plain: float = 0.0
    graphs: int = 1


@dataclass(frozen=True, eq=False)  # by identity, so that what is computed of it can be kept
class Work:
    """A run as far as memory and time depend on it.

    ``sites``: see ``activations.Sites``, of adapters of one ``kind``: lora, dora, loha or lokr. ``edges`` are rows and
    columns of all trained matrices, ``begun`` the numbers in them that do not begin at zero. ``image`` are the tokens
    of the largest bucket with those of its references. ``size``: bytes per number of computation, 2 on a GPU and 4 on
    a CPU. ``in_one_step``: whether the device has a kernel that dequantises. ``preview``: image tokens of a preview
    with its references, 0 for none, ``decoding`` the bytes of the VAE and of what it takes to decode one.
    ``accumulate``: batches per step.
    """

    weights: Weights
    sites: dict[str, tuple[int, int]]
    image: int
    text: int = 512
    batch: int = 1
    accumulate: int = 1
    passes: Passes = field(default_factory=Passes)
    optimizer: str = "adamw"
    ema: bool = False
    fp32_adapters: bool = False
    precision: str = "bf16"
    size: int = 2
    preview: int = 0
    decoding: int = 0
    kind: str = "lora"
    edges: int = 0
    begun: int = 0
    in_one_step: bool = False

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(parameters for _, parameters in self.sites.values())


@dataclass(frozen=True)
class Machine:
    """What there is: free bytes of device and host memory, bytes per second over the bus, operations per second.

    ``withheld`` are free bytes of the device that are left to others. Of what is streamed ``pinned`` bytes at most are
    pinned; the others come at the rate ``bus_unpinned``, 0 where it is not known.
    """

    vram: float
    ram: float = 64e9
    bus: float = 20e9
    flops: float = 50e12
    withheld: float = 0.0
    bus_unpinned: float = 0.0
    pinned: float = float("inf")

    def seconds_to_stream(self, traffic: float, weights: float) -> float:
        """For ``traffic`` bytes out of so many bytes of ``weights`` in host memory."""
        unpinned = max(0.0, 1 - self.pinned / weights) if weights else 0.0
        return traffic * ((1 - unpinned) / self.bus + unpinned / (self.bus_unpinned or UNPINNED * self.bus))


@dataclass(frozen=True)
class Estimate:
    """Bytes of every part on the device and in host memory, seconds per step, and what they are spent on."""

    parts: dict[str, int]
    host: dict[str, int]
    compute: float
    transfer: float
    traffic: int

    @property
    def peak(self) -> int:
        """Most bytes on the device at a time."""
        return sum(self.parts.values())

    @property
    def host_peak(self) -> int:
        """Most bytes in host memory, of what training holds there."""
        return sum(self.host.values())

    @property
    def seconds(self) -> float:
        """Per step: transfers run beside the arithmetic, so the longer of both counts, and a little more."""
        return max(self.compute, self.transfer) * (OVERLAP if self.transfer else 1)

    @property
    def limit(self) -> str:
        """What a faster step would need more of."""
        return "bus" if self.transfer > self.compute else "arithmetic"


def estimate(work: Work, layout: Layout, machine: Machine) -> Estimate:
    """What ``work`` takes, laid out so, on ``machine``."""
    blocks = blocks_of(work, tokens_of(work, layout))
    streamed = [block_bytes(work)[number] for number in layout.streamed]
    ring, staying = ring_bytes(work, layout)
    offloaded = sum(block.inputs for block in blocks) if layout.offload_activations else 0
    parts = {
        "weights": work.weights.total - sum(streamed),
        "streaming": ring,
        "adapters": 4 * work.parameters * (2 if work.ema else 1),
        "optimizer": optimizer_bytes(work),
        **_moment(work, layout, blocks),
    }
    if offloaded:
        parts["activations"] += 2 * max(block.inputs for block in blocks) - offloaded
    parts["previews"] = _preview(work, parts)
    traffic = transferred(work, layout, sum(streamed), staying)
    compute = operations(work, layout) / machine.flops
    away = 2 * offloaded * work.passes.trained * _rounds(work, layout)  # always through pinned memory
    host = {"streamed weights": sum(streamed), "offloaded activations": offloaded}
    transfer = machine.seconds_to_stream(traffic, sum(streamed)) + away / machine.bus
    return Estimate(parts, host, compute, transfer, round(traffic + away))


# Bytes that every optimizer keeps, beside the trained numbers and their gradients (fp32 both). adamw8bit: two bytes for
# each number, and two fp32 scales for 256 of them. adafactor keeps a number for each row and each column. prodigy also
# keeps where it began, of what did not begin at zero.
OPTIMIZER_STATE: dict[str, Callable[[Work], float]] = {
    "adamw": lambda work: 8 * work.parameters,
    "adamw8bit": lambda work: (2 + 8 / 256) * work.parameters,
    "adafactor": lambda work: 4 * work.edges,
    "prodigy": lambda work: 12 * work.parameters + 4 * work.begun,
    "lion": lambda work: 4 * work.parameters,
    "schedulefree": lambda work: 8 * work.parameters,
}


def optimizer_bytes(work: Work) -> int:
    """What the optimizer keeps between steps."""
    return round(OPTIMIZER_STATE[work.optimizer](work))


def _rounds(work: Work, layout: Layout) -> int:
    """How many times a step runs the model: one micro-batch after the other, one batch after the other."""
    return work.accumulate * -(-work.batch // layout.micro_batch)


def tokens_of(work: Work, layout: Layout) -> Tokens:
    """The sequence that is in memory at a time."""
    return Tokens(min(layout.micro_batch, work.batch) * work.passes.graphs, work.image, work.text)


@lru_cache(maxsize=64)
def block_bytes(work: Work) -> list[int]:
    """Stored bytes of every block."""
    return work.weights.block_bytes()


@lru_cache(maxsize=64)
def blocks_of(work: Work, tokens: Tokens) -> list[Block]:
    """Bytes of every block's activations."""
    numbers = Numbers(work.weights.hidden, work.size, work.fp32_adapters, work.kind)
    found, first = [], True
    for block in work.weights.blocks:
        start = len(block) + 1
        sites = {name[start:]: site for name, site in work.sites.items() if name.startswith(f"{block}.")}
        wide = {name[start:]: _dequantised(work, name) for name in work.weights.inside(block)}
        count = double_block if block.startswith("double") else single_block
        found.append(count(numbers, tokens, sites, first, wide))
        first = first and not sites
        if first:  # nothing before the first adapter has a gradient
            found[-1] = replace(found[-1], kept=0)
    return found


def _dequantised(work: Work, linear: str) -> int:
    if linear in work.weights.plain and work.size == 2:
        return 0
    into, out = work.weights.linears[linear]
    steps = dequantising(work.precision)
    return (min(steps, IN_ONE_STEP) if work.in_one_step else steps) * work.size * out * into


def _moment(work: Work, layout: Layout, blocks: list[Block]) -> dict[str, int]:
    """Activations, workspace and gradients at the moment at which their sum is largest.

    Backward makes gradients from the last block on, while the activations go; those of an earlier pass are all there.
    """
    tokens, every = tokens_of(work, layout), 4 * work.parameters
    there = every if work.passes.trained * _rounds(work, layout) > 1 else 0
    own = _gradients(work)
    # what is kept outside of blocks: rotations, and the copy of the image that the last norm reads
    saved = tokens.all * ROPE + tokens.batch * tokens.image * work.weights.hidden * work.size
    moments = [{"gradients": every, "activations": 0, "workspace": every}]  # the optimizer's step
    for number, block in enumerate(blocks):
        kept = _kept(layout, number, block)
        inside = block.top + (kept if layout.recomputes(number) else 0)
        done = max(there, sum(own[number + 1 :]))
        moments.append({"gradients": done, "activations": saved, "workspace": max(inside, kept)})
        if layout.recomputes(number):
            moments[-1]["activations"] += kept
            moments[-1]["workspace"] -= kept
        saved += kept
    return max(moments, key=lambda moment: sum(moment.values()))


def _gradients(work: Work) -> list[int]:
    """Bytes of the gradients that each block's backward makes."""
    return [sum(4 * work.sites[n][1] for n in inside if n in work.sites) for inside in _inside(work).values()]


def _kept(layout: Layout, number: int, block: Block) -> int:
    if not layout.recomputes(number):
        return block.kept
    return block.inputs + (block.attention if layout.checkpointing == SELECTIVE else 0)


def _preview(work: Work, parts: dict[str, int]) -> int:
    """What a preview needs beyond what training has given back by then: ComfyUI moves the weights away for the VAE."""
    tokens = Tokens(1, work.preview, work.text)
    painting = 31 * tokens.all * work.weights.hidden * work.size if work.preview else 0
    free = parts["activations"] + parts["workspace"]
    return max(0, painting - free, work.decoding - free - parts["weights"])


@lru_cache(maxsize=64)
def _inside(work: Work) -> dict[str, list[str]]:
    return {block: work.weights.inside(block) for block in work.weights.blocks}


def ring_bytes(work: Work, layout: Layout) -> tuple[int, float]:
    """Bytes of the ring of buffers, and of what stays in it at a turn of direction and is not fetched again.

    The last groups stay where backward begins, and the first ones where it ends: the mean of both.
    """
    stored, inside = work.weights.stored, _inside(work)
    sizes = [sum(stored[n] for n in group) for group in groups(layout, list(inside), inside)]
    slots = min(SLOTS, len(sizes))
    return (slots * max(sizes), (sum(sizes[:slots]) + sum(sizes[-slots:])) / 2) if sizes else (0, 0.0)


def transferred(work: Work, layout: Layout, streamed: int, staying: float) -> int:
    """Bytes of weights over the bus in a step. A pass with gradients fetches all twice, one without once.

    At both turns of a pass with gradients what lies in the ring is used again.
    """
    if not streamed:
        return 0
    per_pass = 2 * max(0, streamed - staying) * work.passes.trained + streamed * work.passes.plain
    return round(per_pass * _rounds(work, layout))


def operations(work: Work, layout: Layout) -> float:
    """Floating-point operations of a step: two for each weight and token, four for each pair of tokens and channel.

    Forward once; backward once through the frozen Linears, which have no gradient of their own, and 2.5 times through
    attention (Dao 2023); again forward where it is recomputed; adapters three times.
    """
    attention = 4.0 * (work.image + work.text) ** 2 * work.weights.hidden
    per_block, adapters = _forward(work)
    trained = 3 * adapters
    for number, block in enumerate(per_block):
        trained += 2 * block + 3.5 * attention
        if layout.recomputes(number):
            trained += block + (0 if layout.checkpointing == SELECTIVE else attention)
    forward = sum(per_block) + attention * len(per_block) + adapters
    samples = work.batch * work.accumulate
    return samples * (work.passes.trained * work.passes.graphs * trained + work.passes.plain * forward)


@lru_cache(maxsize=64)
def _forward(work: Work) -> tuple[list[float], float]:
    """Operations of one sample's forward pass in each block's Linears, and in all adapters."""
    linears = {name: 2.0 * _seen(work, name) * into * out for name, (into, out) in work.weights.linears.items()}
    adapters = sum(2.0 * parameters * _seen(work, name) for name, (_, parameters) in work.sites.items())
    return [sum(linears[name] for name in inside) for inside in _inside(work).values()], adapters


def _seen(work: Work, linear: str) -> int:
    """Tokens of one sample that a Linear sees."""
    if not linear.startswith("double"):
        return work.image + work.text
    return work.image if ".img_" in linear else work.text
