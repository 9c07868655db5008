"""TREAD: which image tokens skip blocks while training: the node Token Routing."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Settings, setting, settings
from .text import Routes


@settings
class RoutingSettings(Settings):
    """Token routing (TREAD, Krause et al. 2025, arXiv 2501.04765). Text and reference tokens are never left out.

    A route is the blocks from ``start_layer_idx`` to ``end_layer_idx``, both included; double and single blocks are
    counted through from 0, and -1 is the last block. ``more_routes`` are (start, end, selection_ratio) each.
    """

    selection_ratio: float = setting(
        1.0,
        "The fraction of an image's tokens that goes through the routed blocks; the others skip them. Steps take less "
        "time and memory. 1 is off, 0.5 is usual.",
        ge=0.05, le=1, step=0.05,
    )  # fmt: skip
    start_layer_idx: int = setting(
        2, "The first routed block; double and single blocks are counted through from 0.", ge=-1000, le=1000
    )
    end_layer_idx: int = setting(
        -3, "The last routed block, included; negative numbers count from the end.", ge=-1000, le=1000
    )
    until: float = setting(
        90.0,
        "From this percentage of the steps on, nothing skips: a LoRA that is trained with routes only is used without "
        "them. 100 routes to the end.",
        ge=0, le=100, step=5,
    )  # fmt: skip
    ramp: float = setting(
        0.0,
        "Over this percentage of the steps the fraction falls from 1 to selection_ratio. 0 begins with the latter.",
        ge=0, le=100, step=5, advanced=True,
    )  # fmt: skip
    keep_mask: bool = setting(
        False, "Tokens where an image's mask is bright never skip. Needs masks on the data set.", advanced=True
    )
    more_routes: Routes = setting(
        (), "Further routes, as 10..20=0.25: blocks 10 to 20, a quarter of the tokens. Routes may not overlap.",
        advanced=True,
    )  # fmt: skip

    @property
    def routes(self) -> tuple[tuple[int, int, float], ...]:
        """(start, end, ratio) of every route that leaves tokens out."""
        every = ((self.start_layer_idx, self.end_layer_idx, self.selection_ratio), *self.more_routes)
        return tuple(route for route in every if route[2] < 1)

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        for start, end, ratio in self.more_routes:
            if not 0.05 <= ratio <= 1:
                yield f"more_routes keeps {ratio:g} of the tokens in blocks {start}..{end}; it takes 0.05 to 1."
