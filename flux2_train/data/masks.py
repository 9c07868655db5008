"""Masks: where in an image the loss counts, as one number per latent cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..geometry import MULTIPLE
from .dataset import Mask
from .images import open_upright, to_alpha, to_grey
from .render import checked_bytes, cut


@dataclass(frozen=True)
class MaskOptions:
    """Masks from ``folder`` (white counts) or from the images' own ``alpha``; no masks where neither is given.

    Values are moved into ``minimum`` .. 1 so that the rest still counts a little.
    """

    folder: Path | None = None
    alpha: bool = False
    invert: bool = False
    minimum: float = 0.0

    def __post_init__(self):
        if not 0 <= self.minimum <= 1:
            raise UserError(f"mask_minimum is {self.minimum}; it must lie between 0 and 1.")
        if self.folder and self.alpha:
            raise UserError(
                "Masks come from a folder or from alpha, not from both: empty mask_folder or turn alpha off."
            )


def mask_grid(mask: Mask) -> Tensor:
    """(1, 1, H/16, W/16) fp32 with a mean of 1: the mask's average in each latent cell.

    Divided by its own mean, so that an image counts as much as one without a mask however small the part that counts.
    Raises UserError where nothing counts at all.
    """
    image = open_upright(checked_bytes(mask.view), mask.view.path.name)
    grey = to_alpha(image) if mask.alpha else to_grey(image)
    if mask.invert:
        grey = ImageOps.invert(grey)
    width, height = mask.view.crop.size
    cells = cut(grey, mask.view.crop, (width // MULTIPLE, height // MULTIPLE), Image.Resampling.BOX)
    values = torch.from_numpy(np.asarray(cells, dtype=np.float32) / 255.0)
    values = mask.minimum + (1 - mask.minimum) * values
    if not values.any():
        raise UserError(
            f"The mask of {mask.view.path.name} is black all over inside the crop, so nothing would be learned: "
            "correct it, set mask_minimum above 0, or turn mask_invert on."
        )
    return (values / values.mean())[None, None]
