"""Where the base model's prediction is to be kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def outside(masks: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """(B, 1, h, w) what the masks (1, 1, h, w) leave dark, with a mean of 1 (ai-toolkit's inverted prior).

    ``1 - m / max(m)`` divided by its own mean; 0 for a sample without a mask, or one that is equally bright all over.
    """
    rows = [torch.zeros((1, 1, *like.shape[-2:])) if m is None else 1 - m.float() / m.max() for m in masks]
    dark = torch.cat([row.to(like) for row in rows])
    return dark / dark.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
