"""How a run is laid out in memory: what is recomputed, what is streamed and in which groups, how a batch is split."""

from __future__ import annotations

from dataclasses import dataclass

OFF, SELECTIVE, BLOCKS = "off", "selective", "blocks"  # recomputed in backward: nothing, all but attention, everything
WHOLE, LEAF = "block", "leaf"  # a group of streamed weights consists of whole blocks, or of a single Linear
UNREAD = ("linear2", "mlp.2")  # ends of the names of Linears that a recomputation leaves out, see host.borrowed.unread
SLOTS = 2  # buffers of the ring: one in use, one on its way


@dataclass(frozen=True)
class Layout:
    """How a step is laid out. It may change between two attempts at the same step, and never changes what is learned.

    ``every``: every that many blocks one is recomputed; the others keep their activations. ``streamed``: numbers of the
    blocks whose weights stay in host memory; ``grouped`` and ``per_group`` say in which groups they are fetched.
    ``micro_batch``: how many samples run together. ``ahead``: fetch the next group while one is in use. ``in_flight``:
    how many passes with gradients are under way at a time, each on another of several cards.
    """

    checkpointing: str = BLOCKS
    every: int = 1
    offload_activations: bool = False
    streamed: tuple[int, ...] = ()
    grouped: str = WHOLE
    per_group: int = 1
    ahead: bool = True
    micro_batch: int = 1
    in_flight: int = 1

    def recomputes(self, block: int) -> bool:
        """Whether a block is run again in backward; double and single blocks are numbered together."""
        return self.checkpointing != OFF and block % self.every == 0

    def describe(self, blocks: int) -> str:
        """The layout in words."""
        recomputed = {OFF: "no recomputation", SELECTIVE: "recomputed but for attention", BLOCKS: "recomputed"}
        portions = " Linear by Linear" if self.grouped == LEAF else ""
        streamed = f"{len(self.streamed)} of {blocks} blocks streamed{portions}"
        parts = [streamed if self.streamed else "all weights resident"]
        every = f" (every {self.every}. block)" if self.every > 1 and self.checkpointing != OFF else ""
        parts.append(recomputed[self.checkpointing] + every)
        if self.offload_activations:
            parts.append("activations in host memory")
        if self.in_flight > 1:
            parts.append(f"{self.in_flight} passes in flight")
        return ", ".join(parts)


def spread(count: int, blocks: int) -> tuple[int, ...]:
    """Numbers of ``count`` out of ``blocks`` blocks at even distances, so that transfers have most time to finish."""
    return tuple((2 * i + 1) * blocks // (2 * count) for i in range(count))


def groups(layout: Layout, names: list[str], inside: dict[str, list[str]]) -> list[list[str]]:
    """The Linears of each group that is streamed, in the model's order. ``inside``: Linears by block name."""
    blocks = [inside[names[number]] for number in sorted(layout.streamed)]
    if layout.grouped == LEAF:
        return [[linear] for block in blocks for linear in block]
    portions = [blocks[i : i + layout.per_group] for i in range(0, len(blocks), layout.per_group)]
    return [[linear for block in portion for linear in block] for portion in portions]
