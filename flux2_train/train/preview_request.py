"""The previews to paint during a run, as the node Validation passes them on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..host.graph_types import VAE, ModelPatcher
from ..settings.previews import PreviewSettings


@dataclass(frozen=True)
class PreviewRequest:
    """What to paint, and the VAE and MODEL of the graph to paint with.

    ``model`` is a second MODEL, which paints with the adapters that the first one learns. ``references`` are the
    reference IMAGEs (N, H, W, 3) of each prompt, in the order of the prompts. ``made_by`` is the VAE's file as Load
    FLUX.2 names it, or empty if the file's name alone does not identify the VAE.
    """

    config: PreviewSettings
    vae: VAE
    model: ModelPatcher | None = None
    references: tuple[tuple[Tensor, ...], ...] = field(default=())
    made_by: str = ""
