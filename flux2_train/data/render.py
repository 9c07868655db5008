"""From a file and a crop to the pixels that are encoded."""

from __future__ import annotations

from functools import partial

from PIL import Image
from torch import Tensor

from ..errors import UserError
from .crops import Crop, Size
from .dataset import View
from .images import digest_of, in_turn, open_shrunk, read_bytes, size_of, to_rgb, to_tensor
from .variations import recoloured, turn


def checked_bytes(view: View) -> bytes:
    """The file's content. Raises UserError if it is not what the data set was made from."""
    data = read_bytes(view.path)
    if digest_of(data) != view.digest:
        raise UserError(f"{view.path.name} has changed since Dataset Folder read it; queue again.")
    return data


def cut(image: Image.Image, crop: Crop, size: Size | None = None, resample=Image.Resampling.LANCZOS) -> Image.Image:
    """The crop of an upright image at ``size`` (its own unless given), turned and flipped as it says."""
    out = (
        _turned(image, crop, size, resample) if crop.angle else image.resize(size or crop.size, resample, box=crop.box)
    )
    if crop.flip_x:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return out.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if crop.flip_y else out


def _turned(image: Image.Image, crop: Crop, size: Size | None, resample: int) -> Image.Image:
    """The turned crop; a smaller ``size`` is made from the crop's own, because turning is not exact on few pixels."""
    out = turn(image, crop.box, crop.angle, crop.size, Image.Resampling.LANCZOS)
    return out if size in (None, crop.size) else out.resize(size, resample)


def render(view: View) -> Image.Image:
    """The pixels that are encoded, as an RGB picture."""
    data = checked_bytes(view)
    return in_turn(size_of(data), partial(_rendered, data, view))


def _rendered(data: bytes, view: View) -> Image.Image:
    """The whole picture is decoded, and freed again, in here."""
    image, shrink = open_shrunk(data, view.path.name, view.crop.room)
    picture = cut(to_rgb(image, view.background or "white"), view.crop.shrunk(shrink))
    return recoloured(picture, view.crop.colours) if view.crop.colours else picture


def pixels(view: View) -> Tensor:
    """ComfyUI's IMAGE (1, H, W, 3) in 0..1."""
    return to_tensor(render(view))
