"""Reading image files of every kind: turned upright, in 8 bits, refusing files too large to be safe."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from ..errors import UserError
from ..geometry import MULTIPLE

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
OTHER_SUFFIXES = (
    ".gif",
    ".heic",
    ".heif",
    ".jxl",
    ".psd",
    ".svg",
    ".tga",
    ".raw",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
    ".exr",
)
MAX_PIXELS = 178_956_970  # above this Pillow takes a file for a decompression bomb
MAX_BYTES = 1 << 30
ORIENTATION = 0x0112
DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class Facts:
    """What is known of one file's content: its upright size, whether it has transparency, or why it cannot be used."""

    width: int = 0
    height: int = 0
    alpha: bool = False
    problem: str = ""

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def digest_of(data: bytes) -> str:
    """Identity of a file's content: blake2b, 128 bits, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises UserError if it cannot be read or is larger than any image should be."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path.name} is {path.stat().st_size >> 20} MB large; at most {MAX_BYTES >> 20} MB are read."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror or error}).") from error


@contextmanager
def no_filling_up() -> Iterator[None]:
    """Truncated files raise inside, even if another pack has told Pillow to fill them up with grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def examine(data: bytes) -> Facts:
    """Decode an image once to find out whether that works; ``problem`` says why it does not."""
    if not data:
        return Facts(problem="is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            problem = _size_problem(*image.size)
            if problem:
                return Facts(*image.size, problem=problem)
            return Facts(*_decoded_size(image), transparent(image))
    except Image.DecompressionBombError:
        return Facts(problem=f"has more than {MAX_PIXELS // 10**6} megapixels, the most that are read")
    except Exception as error:  # a broken file makes decoders raise almost anything
        return Facts(problem=f"cannot be read as an image ({error or type(error).__name__})")


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """The upright size, after reading the image to its end."""
    if image.format != "JPEG":
        return ImageOps.exif_transpose(image).size
    width, height = image.size
    sideways = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    image.draft("L", (1, 1))  # decodes at an eighth of the size
    image.load()
    return (height, width) if sideways else (width, height)


def _size_problem(width: int, height: int) -> str:
    if width * height > MAX_PIXELS:
        return f"has more than {MAX_PIXELS // 10**6} megapixels, the most that are read"
    if min(width, height) < MULTIPLE:
        return f"is {width}x{height} pixels; both sides must have at least {MULTIPLE}"
    return ""


def transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or a colour that means transparent."""
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def open_upright(data: bytes, name: str) -> Image.Image:
    """The decoded image, turned as its EXIF says. Raises UserError with the file's name."""
    return open_shrunk(data, name, 1.0)[0]


def open_shrunk(data: bytes, name: str, room: float) -> tuple[Image.Image, int]:
    """The upright image, decoded smaller where that is possible, and by what its sides are divided (1, 2, 4 or 8).

    The caller will scale the image down ``room`` times. JPEGs decode to 1/2, 1/4 or 1/8 in a fraction of the time; the
    decoded image stays at least twice as large as the caller needs, so that scaling it down gives the same as from the
    full image (Pillow's ``reducing_gap`` of 2). Raises as ``open_upright``.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            shrink = _shrink(image, room)
            if shrink > 1:
                image.draft(None, (image.width // shrink, image.height // shrink))
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except Exception as error:  # a broken file makes decoders raise almost anything
        raise UserError(f"{name} cannot be read as an image ({error or type(error).__name__}).") from error
    return upright, shrink


def _shrink(image: Image.Image, room: float) -> int:
    """By what to divide a JPEG's sides while decoding. They must be divisible, or a mirrored picture would shift."""
    if image.format != "JPEG":
        return 1
    fitting = (s for s in (8, 4, 2) if room >= 2 * s and image.width % s == image.height % s == 0)
    return next(fitting, 1)


def load_rgb(path: Path, background: str = "white") -> Image.Image:
    """The image upright, in 8-bit RGB, transparency flattened. Raises UserError with the file's name."""
    return to_rgb(open_upright(read_bytes(path), path.name), background)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """8-bit RGB; transparency flattened on ``background``."""
    if image.mode.split(";")[0] in DEEP_MODES:
        return _from_deep(image)
    if not transparent(image):
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")


def to_alpha(image: Image.Image) -> Image.Image:
    """The opacity as 8-bit grey; opaque everywhere for an image without transparency."""
    return image.convert("RGBA").getchannel("A") if transparent(image) else Image.new("L", image.size, 255)


def to_grey(image: Image.Image) -> Image.Image:
    """8-bit grey, as a mask is read; transparency counts as black."""
    return to_rgb(image, "black").convert("L")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit and floating-point grey to RGB; Pillow's own conversion clips instead of scaling."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    scaled = values / _full_scale(image.mode, float(values.max())) * 255 + 0.5
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")


def _full_scale(mode: str, largest: float) -> float:
    if mode == "F":
        return 1.0 if largest <= 1.0 else 255.0 if largest <= 255.0 else 65535.0
    return 65535.0 if largest <= 65535.0 else float(2 ** math.ceil(math.log2(largest)) - 1)


def to_tensor(image: Image.Image) -> Tensor:
    """ComfyUI's IMAGE (1, H, W, 3) in 0..1 of an RGB picture."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]
