"""Small pictures for a browser: made once for each state of a file and kept in a folder of bounded size."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from pathlib import Path

from PIL import Image

from ...atomic import replacing
from ...errors import UserError
from ...hashing import canonical_hash
from ...names import shown
from ..images import FORMATS, MAX_BYTES, in_turn, open_shrunk, read_bytes, size_of, to_rgb
from ..index import signature

SIDES = (256, 1024)  # pixels of the longer side: in a grid, in the editor
MOST_KEPT = 1 << 28  # bytes of all thumbnails together
QUALITY = 85
OFTEN = 500  # thumbnails that are made between two looks at the size of all
_made_so_far = itertools.count(1)


def thumbnail(path: Path, side: int, kept: Path) -> bytes:
    """A JPEG of at most ``side`` pixels. Raises UserError for a file that is no picture, and for another side.

    ``kept`` is the folder in which thumbnails are kept.
    """
    if side not in SIDES:
        raise UserError(f"side is {side}; it must be {SIDES[0]} or {SIDES[1]}.")
    try:
        key = canonical_hash([str(path), *signature(os.stat(path)), side, FORMATS])
    except OSError as error:
        raise UserError(f"{shown(path.name)} is not there.") from error
    file = kept / key[:2] / f"{key}.jpg"
    with contextlib.suppress(OSError):
        data = file.read_bytes()
        os.utime(file)  # what was not seen for longest goes first
        return data
    data = _made(path, side)
    with contextlib.suppress(OSError):  # a full disk only makes the next one slow
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_bytes(data)
        if next(_made_so_far) % OFTEN == 0:
            bound(kept)
    return data


def _made(path: Path, side: int) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{shown(path.name)} is too large.")
    data = read_bytes(path)
    size = size_of(data)
    return in_turn(size, lambda: _small(data, path.name, side, max(size) / side))


def _small(data: bytes, name: str, side: int, room: float) -> bytes:
    picture = to_rgb(open_shrunk(data, name, room)[0])
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=QUALITY)
    return held.getvalue()


def bound(kept: Path, most: int = MOST_KEPT) -> int:
    """Remove the thumbnails that were not seen for longest until ``most`` bytes are left; returns how many."""
    files = [(path.stat().st_mtime, path.stat().st_size, path) for path in kept.glob("??/*.jpg")]
    total, removed = sum(size for _, size, _ in files), 0
    for _, size, path in sorted(files):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total, removed = total - size, removed + 1
    return removed
