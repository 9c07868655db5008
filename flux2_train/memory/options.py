"""How a run is to be laid out in memory, as the user says it; everything is left to the planner until it is set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..section import Section, choices, ranges

AUTO, OFF, ALL, ON = "auto", "off", "all", "on"
OFFLOADS = (AUTO, OFF, ALL)


@dataclass(frozen=True)
class MemoryConfig(Section):
    """What stays in host memory and comes when it is needed, and what is recomputed. Nothing here changes the result.

    How much of the base is streamed, said in one of three ways, all 0 or off for what ``offload`` says:
    ``blocks_to_swap`` blocks, ``offload_percent`` of them, or with ``group_offload`` all of them. ``group_offload`` and
    ``blocks_per_group`` also say in what portions; ``stream`` fetches the next portion while one is in use.
    ``recompute`` says what checkpointing keeps: nothing but each block's inputs, or attention's outputs too;
    ``recompute_every`` n-th block only, 0 for auto. ``micro_batch`` images run together, 0 for auto.
    ``memory_limit`` in GB plans as if the device had no more, and has ComfyUI leave the rest free; 0 is what is free.
    At most ``pinned_memory`` GB of streamed weights are pinned in host memory; 0 is half of the memory that is free or
    holds them.
    """

    GROUPS: ClassVar[tuple] = (OFF, "block", "leaf")
    RECOMPUTE: ClassVar[tuple] = (AUTO, "blocks", "selective")

    blocks_to_swap: int = 0
    offload_percent: float = 0.0
    group_offload: str = OFF
    blocks_per_group: int = 1
    stream: bool = True
    recompute: str = AUTO
    recompute_every: int = 0
    offload_activations: str = AUTO
    micro_batch: int = 0
    memory_limit: float = 0.0
    pinned_memory: float = 0.0

    @property
    def streams(self) -> bool:
        """Whether an amount to stream is set here."""
        return bool(self.blocks_to_swap or self.offload_percent or self.group_offload != OFF)

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from choices(self, group_offload=self.GROUPS, recompute=self.RECOMPUTE,
                           offload_activations=(AUTO, ON, OFF))  # fmt: skip
        yield from ranges(self, blocks_to_swap=(0, 1000), offload_percent=(0, 100), blocks_per_group=(1, 1000),
                          recompute_every=(0, 1000), micro_batch=(0, 1024), memory_limit=(0, 1e6),
                          pinned_memory=(0, 1e6))  # fmt: skip
        if self.blocks_to_swap and self.offload_percent:
            yield "blocks_to_swap and offload_percent are both set, and say the same twice; set one of them to 0."
        if self.blocks_per_group > 1 and self.group_offload != "block":
            yield f"blocks_per_group is {self.blocks_per_group}, which needs group_offload 'block'."
        if self.offload_activations == ON and (self.recompute == "selective" or self.recompute_every > 1):
            yield "offload_activations moves the inputs of recomputed blocks: set recompute to 'blocks', every 1 or 0."
