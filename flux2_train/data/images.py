"""Reading image files of every kind: turned upright, in 8 bits, refusing files too large to be safe."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from .. import bounded
from ..errors import UserError
from ..geometry import MULTIPLE
from ..names import shown
from .looks import SIDE, look_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")  # Pillow's names of what is ever decoded
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
LARGE = 1 << 25  # pixels: pictures beyond it are decoded one at a time
MAX_BYTES = 1 << 30
ORIENTATION = 0x0112
DEEP_MODES = ("I", "F")
SMOOTH_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "I", "F")  # whose pixels Pillow can average
_one_thread = ThreadPoolExecutor(1, "large pictures")
T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What is known of one file's content: its upright size, whether it has transparency, or why it cannot be used.

    ``look`` is its coarse form, see looks.py.
    """

    width: int = 0
    height: int = 0
    alpha: bool = False
    problem: str = ""
    look: str = ""

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def digest_of(data: bytes) -> str:
    """Identity of a file's content: blake2b, 128 bits, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises UserError if it cannot be read, is no regular file, or is larger than images are."""
    return bounded.read_bytes(path, MAX_BYTES)


def in_turn(size: tuple[int, int], work: Callable[[], T]) -> T:
    """What ``work`` returns, which decodes a picture of that size: all large ones are decoded by one thread.

    A picture of MAX_PIXELS takes 0.7 GB decoded, and its file may have a thousandth of that. A lock alone would not do:
    the C library keeps what a thread has freed for that thread.
    """
    return _one_thread.submit(work).result() if size[0] * size[1] > LARGE else work()


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
        with opened(data) as image:
            problem = _size_problem(*image.size)
            if problem:
                return Facts(*image.size, problem=problem)
        return in_turn(image.size, partial(_decoded, data))
    except Image.DecompressionBombError:
        return Facts(problem=f"has more than {MAX_PIXELS // 10**6} megapixels, the most that are read")
    except Exception as error:  # a broken file makes decoders raise almost anything
        return Facts(problem=f"cannot be read as an image ({_why(error)})")


def opened(data: bytes) -> Image.Image:
    """The image in ``data``, not decoded yet. Only decoders of the formats that the documents name ever see it.

    Pillow would otherwise try every format it knows: PostScript, for one, is handed to Ghostscript, a program that
    runs what it reads.
    """
    return Image.open(io.BytesIO(data), formats=FORMATS)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) as the header says, without decoding; (0, 0) if that cannot be read."""
    try:
        with opened(data) as image:
            return image.size
    except Exception:  # decoding says what is wrong
        return 0, 0


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no PNG, JPEG, WebP, BMP, TIFF or AVIF"
    return shown(str(error) or type(error).__name__)


def _decoded(data: bytes) -> Facts:
    """The facts of an image that can be read to its end. It is decoded, and freed again, in here."""
    with opened(data) as image:
        size, alpha = _decoded_size(image), transparent(image)
        return Facts(*size, alpha, look=look_of(_small(image)))


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """The upright size, after reading the image to its end."""
    size = image.size
    if image.format == "JPEG":
        image.draft(None, (SIDE, SIDE))  # decodes at a half to an eighth of the size where it is larger
        image.load()
    else:
        image.load()
        size = image.size  # TIFF turns itself
    sideways = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return size[::-1] if sideways else size


def _small(image: Image.Image) -> Image.Image:
    """The image upright, small and in RGB. It is made small first: in RGB a large one would take its memory again."""
    if image.mode in SMOOTH_MODES:
        small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    else:
        small = image.resize(tuple(min(side, 16 * SIDE) for side in image.size), Image.Resampling.NEAREST)
    return to_rgb(ImageOps.exif_transpose(small))  # what is resized keeps its EXIF


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
        image = opened(data)
        shrink = _shrink(image, room)
        if shrink > 1:
            image.draft(None, (image.width // shrink, image.height // shrink))
        image.load()
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # a broken file makes decoders raise almost anything
        raise UserError(f"{shown(name)} cannot be read as an image ({_why(error)}).") from error
    return image, shrink


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
        return image if image.mode == "RGB" else image.convert("RGB")
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
