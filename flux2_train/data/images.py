"""Reading images as people have them into plain RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError
from ..geometry import cover

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
MAX_PIXELS = 200_000_000


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) as the image is meant to be seen, read from the header only.

    Raises UserError with the file's name if it cannot be an image for training.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} cannot be read as an image ({error}).") from error
    if width * height > MAX_PIXELS:
        raise UserError(f"{path.name} has {width}x{height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read.")
    return (height, width) if sideways else (width, height)


def load_rgb(path: Path) -> Image.Image:
    """The image upright, in 8-bit RGB, transparency flattened on white. Raises UserError with the file's name."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} cannot be read as an image ({error}).") from error
    if upright.mode.startswith("I") or upright.mode == "F":
        return _from_deep(upright)
    if "A" in upright.getbands() or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit grey to RGB; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image, dtype=np.float32)
    scale = 65535.0 if values.max() > 255 else 255.0
    return Image.fromarray((values / scale * 255 + 0.5).clip(0, 255).astype(np.uint8)).convert("RGB")


def fit(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1, H, W, 3) in 0..1, ComfyUI's IMAGE: centre-cropped to the aspect ratio of ``size``, scaled with Lanczos."""
    return to_tensor(image.resize(size, Image.Resampling.LANCZOS, box=cover(*image.size, size)))


def to_tensor(image: Image.Image) -> Tensor:
    """ComfyUI's IMAGE (1, H, W, 3) in 0..1 of an RGB picture."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]
