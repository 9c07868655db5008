"""What to paint while a run goes on, and with which of the graph's parts: what the node Validation hands on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..settings.previews import PreviewSettings


@dataclass(frozen=True)
class PreviewRequest:
    """What to paint, and with which of the graph's parts.

    ``model`` is the second MODEL, which paints with the adapters that the first one learns. ``references`` are the
    IMAGEs (N, H, W, 3) that each prompt edits or takes things from, in the order of the prompts. ``made_by`` is the
    VAE's file as Load FLUX.2 names it, empty where that does not say all.
    """

    config: PreviewSettings
    vae: object
    model: object | None = None
    references: tuple[tuple[Tensor, ...], ...] = field(default=())
    made_by: str = ""
