"""Masks: where in an image the loss counts, as one number per latent cell."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..geometry import MULTIPLE
from ..names import shown
from .crops import Size
from .dataset import Mask
from .images import in_turn, open_upright, size_of, to_alpha, to_grey
from .render import checked_bytes, cut


def mask_grid(mask: Mask) -> Tensor:
    """(1, 1, H/16, W/16) fp32 with a mean of 1: the mask's average in each latent cell.

    It is divided by its own mean, so that a masked image counts as much as one without a mask, however little of it the
    mask leaves. Raises UserError for a mask that is 0 everywhere.
    """
    data = checked_bytes(mask.view)
    width, height = mask.view.crop.size
    cells = in_turn(size_of(data), partial(_cells, data, mask, (width // MULTIPLE, height // MULTIPLE)))
    values = torch.from_numpy(np.asarray(cells, dtype=np.float32) / 255.0)
    values = mask.minimum + (1 - mask.minimum) * values
    if not values.any():
        raise UserError(
            f"The mask of {shown(mask.view.path.name)} is black all over inside the crop, so nothing would be learned: "
            "correct it, set minimum of Mask Options above 0, or turn invert on."
        )
    return (values / values.mean())[None, None]


def _cells(data: bytes, mask: Mask, size: Size) -> Image.Image:
    """The mask's mean in each of ``size`` cells, as 8-bit grey. The picture is decoded, and freed again, in here."""
    image = open_upright(data, mask.view.path.name)
    grey = to_alpha(image) if mask.alpha else to_grey(image)
    if mask.invert:
        grey = ImageOps.invert(grey)
    return cut(grey, mask.view.crop, size, Image.Resampling.BOX)
