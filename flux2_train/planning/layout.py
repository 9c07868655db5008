"""How a run is laid out in memory: what is recomputed, what is streamed and in which groups, how a batch is split."""

from __future__ import annotations

from dataclasses import dataclass

OFF, SELECTIVE, BLOCKS = "off", "selective", "blocks"  # what is recomputed in backward: nothing, all but attention, all
WHOLE, LEAF = "block", "leaf"  # what a group of streamed weights is made of: whole blocks, or single Linears
SLOTS = 2  # buffers of the ring: one in use, one on its way


@dataclass(frozen=True)
class Layout:
    """What can be changed between two attempts at the same step, none of which changes what is learned.

    ``every``: of so many blocks one is recomputed, the others keep their activations. ``streamed`` are the numbers of
    the blocks whose weights stay in host memory; ``grouped`` and ``per_group`` say in what portions they come.
    ``micro_batch`` is the number of samples that run together. ``ahead``: fetch the next group while one is in use.
    """

    checkpointing: str = BLOCKS
    every: int = 1
    offload_activations: bool = False
    streamed: tuple[int, ...] = ()
    grouped: str = WHOLE
    per_group: int = 1
    ahead: bool = True
    micro_batch: int = 1

    def recomputes(self, block: int) -> bool:
        """Whether a block, counted over both kinds, is run again in backward."""
        return self.checkpointing != OFF and block % self.every == 0

    def describe(self, blocks: int) -> str:
        """In words, for people."""
        recomputed = {OFF: "no recomputation", SELECTIVE: "recomputed but for attention", BLOCKS: "recomputed"}
        portions = " Linear by Linear" if self.grouped == LEAF else ""
        streamed = f"{len(self.streamed)} of {blocks} blocks streamed{portions}"
        parts = [streamed if self.streamed else "all weights resident"]
        every = f" (every {self.every}. block)" if self.every > 1 and self.checkpointing != OFF else ""
        parts.append(recomputed[self.checkpointing] + every)
        if self.offload_activations:
            parts.append("activations in host memory")
        return ", ".join(parts)


def spread(count: int, blocks: int) -> tuple[int, ...]:
    """``count`` of ``blocks`` at even distances: between two transfers there is as much to compute as can be."""
    return tuple((2 * i + 1) * blocks // (2 * count) for i in range(count))


def groups(layout: Layout, names: list[str], inside: dict[str, list[str]]) -> list[list[str]]:
    """The Linears of each portion that is streamed, in the model's order. ``inside``: Linears by block name."""
    blocks = [inside[names[number]] for number in sorted(layout.streamed)]
    if layout.grouped == LEAF:
        return [[linear] for block in blocks for linear in block]
    portions = [blocks[i : i + layout.per_group] for i in range(0, len(blocks), layout.per_group)]
    return [[linear for block in portion for linear in block] for portion in portions]
