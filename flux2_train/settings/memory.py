"""What stays in host memory while training, and what is computed twice: the node Memory, and ``offload``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from ..names import shown
from .base import Settings, setting, settings

AUTO, OFF, ALL, ON = "auto", "off", "all", "on"
Offload = Literal["auto", "off", "all"]
_CARDS = re.compile(r"auto|[1-9]\d{0,2}|\d{1,3}(,\d{1,3})+", re.ASCII)  # all, so many, or these


@settings
class MemorySettings(Settings):
    """Nothing here changes the result. The planner chooses what is 0, off or auto.

    There are three ways to set how much of the base is streamed: ``blocks_to_swap``, ``offload_percent``, or
    ``group_offload``, which on its own streams everything and always sets the size of the groups.
    """

    blocks_to_swap: int = setting(
        0,
        "Stream so many blocks of the base from host memory. klein-4b has 25, klein-9b 32, dev 56. 0 leaves it to "
        "'offload' of LoRA Trainer.",
        ge=0, le=1000,
    )  # fmt: skip
    offload_percent: float = setting(
        0.0, "The same as a share of all blocks. 0 leaves it to 'offload' of LoRA Trainer.", ge=0, le=100, step=1
    )
    group_offload: Literal["off", "block", "leaf"] = setting(
        OFF,
        "Stream in groups of whole blocks, or Linear by Linear ('leaf': the smallest buffers). On its own it streams "
        "everything; with one of the amounts above, so much.",
    )
    blocks_per_group: int = setting(
        1, "For group_offload 'block': how many blocks come together. More needs larger buffers.",
        ge=1, le=1000, advanced=True,
    )  # fmt: skip
    stream: bool = setting(
        True,
        "Fetch the next group on a stream of its own while one is in use. Off waits for each: slower, with one thing "
        "less that could go wrong.",
        advanced=True,
    )
    recompute: Literal["auto", "blocks", "selective"] = setting(
        AUTO,
        "What checkpointing keeps: 'blocks' each block's input, 'selective' attention's output too, which is then not "
        "computed twice. 'auto' takes the fastest that fits.",
        advanced=True,
    )
    recompute_every: int = setting(
        0, "Recompute every n-th block only and keep the others: faster, more memory. 0 is auto.",
        ge=0, le=1000, advanced=True,
    )  # fmt: skip
    offload_activations: Literal["auto", "on", "off"] = setting(
        AUTO, "Keep the inputs of recomputed blocks in host memory until backward. 'auto' as needed.", advanced=True
    )
    micro_batch: int = setting(
        0, "Run so many images of a batch at a time; the loss stays the same. 0 is auto.", ge=0, le=1024, advanced=True
    )
    memory_limit: float = setting(
        0.0, "Plan as if the card had only so many GB free; others keep the rest. 0 is all.",
        ge=0, le=1e6, step=0.5, advanced=True,
    )  # fmt: skip
    pinned_memory: float = setting(
        0.0,
        "Pin at most so many GB of streamed weights in host memory: they arrive faster, and no other program has that "
        "memory meanwhile. 0 is half of the memory that is free or holds them.",
        ge=0, le=1e6, step=0.5, advanced=True,
    )  # fmt: skip

    share_base: bool = setting(
        False,
        "With several processes: each keeps a part of every block, and gets the others' parts when the block is used. "
        "The base then takes 1 / processes of its memory on each card, plus two blocks.",
        advanced=True,
    )
    cards: str = setting(
        "1",
        "Split the blocks over several cards of this computer, by the free memory of each: how many, or which, as 0,2, "
        "or 'auto' for all that ComfyUI sees. One card works at a time, unless a step has several batches "
        "(accumulate): then all do.",
        advanced=True,
    )

    @property
    def streams(self) -> bool:
        """Whether an amount to stream is set here."""
        return bool(self.blocks_to_swap or self.offload_percent or self.group_offload != OFF)

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.blocks_to_swap and self.offload_percent:
            yield "blocks_to_swap and offload_percent are both set, and say the same twice; set one of them to 0."
        if self.blocks_per_group > 1 and self.group_offload != "block":
            yield f"blocks_per_group is {self.blocks_per_group}, which needs group_offload 'block'."
        yield from self._problems_of_cards()
        if self.offload_activations == ON and (self.recompute == "selective" or self.recompute_every > 1):
            yield (
                "offload_activations moves the inputs of recomputed blocks: set recompute to 'blocks' and "
                "recompute_every to 1 or 0."
            )

    def _problems_of_cards(self) -> Iterator[str]:
        listed = self.cards.split(",")
        if not _CARDS.fullmatch(self.cards):
            yield (
                f"cards is {shown(self.cards)!r}; it must be 'auto', how many cards, such as 2, or which ones, such as "
                "0,1."
            )
        elif len(listed) > 1 and len(set(map(int, listed))) < len(listed):
            yield f"cards is {shown(self.cards)!r}, which names a card twice."
        if self.cards != "1" and self.share_base:
            yield (
                "cards splits the base over cards in one process and share_base shares it among several processes: set "
                "cards to 1 or turn share_base off."
            )
