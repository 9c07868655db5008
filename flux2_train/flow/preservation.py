"""Where in an image the base model's prediction is preserved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def outside(masks: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """(B, 1, h, w) weights of the dark parts of masks (1, 1, h, w), with a mean of 1 (ai-toolkit's inverted prior).

    ``1 - m / max(m)`` divided by its own mean; 0 for a sample without a mask or with a mask of one brightness.
    """
    none = torch.zeros((1, 1, *like.shape[-2:]), device=like.device)
    rows = [none if m is None else 1 - m.float() / m.max() for m in masks]
    dark = torch.cat([row.to(like) for row in rows])
    return dark / dark.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
