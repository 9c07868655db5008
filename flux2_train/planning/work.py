"""What the planner plans for: the work of a run, and the machine that does it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .weights import Weights

PINNED_SHARE = 0.5  # at most this share is pinned of the host memory that is free or holds these weights already
DISK = 1e9  # bytes per second from the disk, if it is not measured
AT_ONCE = 1 << 24  # numbers that products in 8 bits convert at a time on a card
UNPINNED = 1 / 3  # rate of unpinned memory as a share of the rate of pinned memory, if it is not measured


@dataclass(frozen=True)
class Passes:
    """How often the model runs in a step on average: with gradients (``trained``) and without (``plain``).

    ``graphs``: how many graphs of autograd are alive at the same time.
    """

    trained: float = 1.0
    plain: float = 0.0
    graphs: int = 1


@dataclass(frozen=True, eq=False)  # by identity, so that what is computed of it can be kept
class Work:
    """Everything about a run that its memory and time depend on.

    ``sites``: see ``activations.Sites``; the adapters are of one ``kind``: lora, dora, loha or lokr. ``edges``: rows
    and columns of all trained matrices. ``begun``: trained numbers that do not start at zero. ``image``: tokens of the
    largest bucket and its references. ``size``: bytes of a number in the dtype of computation, 2 on a GPU and 4 on a
    CPU. ``in_one_step``: whether the device has a kernel that dequantises in one step. ``preview``: image tokens of a
    preview and its references, 0 for none. ``decoding``: bytes of the VAE and of decoding one preview. ``accumulate``:
    batches per step. ``routes``: (first block, last block, fraction of the image tokens that these blocks see) each, in
    ``routed`` of all steps; the ``references`` among the image tokens are seen by all blocks. ``optimizer_state``:
    bytes that an optimizer keeps for which the planner has no rule, 0 if they were not measured. ``shares``: among how
    many processes the streamed weights are shared, each of which keeps its part on its device. ``cards``: over how many
    cards the blocks are split, how many blocks lie on each; empty for one card. ``overlaps``: whether several passes
    with gradients may be in flight over the cards. ``eight_bit``: whether frozen Linears are multiplied in int8.
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
    routes: tuple[tuple[int, int, float], ...] = ()
    routed: float = 0.0
    references: int = 0
    optimizer_state: int = 0
    shares: int = 1
    cards: tuple[int, ...] = ()
    overlaps: bool = True
    eight_bit: bool = False

    def image_at(self, block: int, routed: bool) -> int:
        """Image tokens that a block sees in a step that is ``routed``, or in one that is not."""
        if not routed:
            return self.image
        ratios = (ratio for first, last, ratio in self.routes if first <= block <= last)
        return round(next(ratios, 1.0) * (self.image - self.references)) + self.references

    @property
    def always_routed(self) -> bool:
        """Whether no step sees all tokens, so that memory for them is never needed."""
        return self.routed == 1

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameters for _, parameters in self.sites.values())


@dataclass(frozen=True)
class Machine:
    """The machine: free bytes of device and host memory, bytes per second over the bus, operations per second.

    ``withheld``: free bytes of the device that are left to other programs. Of the streamed weights at most ``pinned``
    bytes are in pinned memory; the others come at the rate ``bus_unpinned``, or ``disk`` if host memory has no room for
    all of them. Both are 0 if they are not known. ``others``: free bytes of the other cards that hold blocks.
    """

    vram: float
    ram: float = 64e9
    bus: float = 20e9
    flops: float = 50e12
    withheld: float = 0.0
    bus_unpinned: float = 0.0
    pinned: float = float("inf")
    disk: float = 0.0
    others: tuple[float, ...] = ()

    def seconds_to_stream(self, traffic: float, weights: float, from_disk: bool = False) -> float:
        """Seconds to transfer ``traffic`` bytes in total, of ``weights`` bytes that are streamed.

        If some are read ``from_disk``, all that are not pinned are: they are read in turn, so the system has dropped
        each of them from its cache before it is read again.
        """
        pinned = min(self.pinned, PINNED_SHARE * self.ram) if from_disk else self.pinned
        unpinned = max(0.0, 1 - pinned / weights) if weights else 0.0
        rate = self.bus_unpinned or UNPINNED * self.bus
        if from_disk:
            rate = min(rate, self.disk or DISK)
        return traffic * ((1 - unpinned) / self.bus + unpinned / rate)
