"""Changes to a data folder from a browser of pictures: captions, marks and masks, and nothing else.

Every file is written whole or not at all. If somebody else has changed a file since it was read, the file stays:
each change brings the mark of the content that it was made on (``etag``), or the value that it replaces.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from ... import bounded
from ...atomic import replacing, write_text
from ...bounded import from_json, is_file, reason
from ...errors import UserError
from ...names import shown
from ...settings.dataset_folder import DatasetSettings
from .. import captions as texts
from .. import sidecar
from ..folder import same_shape
from ..images import SUFFIXES, digest_of, examine, opened, to_grey
from ..pairs import MayRead, anywhere, name_of

MAX_MASK_BYTES = 1 << 24  # of a painted mask as PNG
_one_at_a_time = threading.Lock()  # in this process; another program is noticed by its content


class Changed(UserError):
    """Somebody else has changed what was to be changed. ``now`` is what is there, as JSON."""

    def __init__(self, text: str, now: dict):
        super().__init__(text)
        self.now = now


def picture(root: Path, name: object, may_read: MayRead = anywhere) -> Path:
    """The path of a picture by its relative name. Raises UserError if there is none, or if it may not be read."""
    path = root / sidecar.picture_name(name)
    if path.suffix.lower() not in SUFFIXES or not is_file(path) or not may_read(path):
        raise UserError(f"{shown(str(name))} is no picture in {shown(root.name)}.")
    return path


def etag(path: Path) -> str:
    """The hash of a file's content; empty if there is no file."""
    return digest_of(bounded.read_bytes(path, MAX_MASK_BYTES)) if is_file(path) else ""


# captions


def caption_file(image: Path) -> Path:
    """The file that holds an image's caption, or the one that would."""
    beside = texts.beside(image)
    return next((path for path in beside if is_file(path)), beside[0])


def read_caption(image: Path) -> tuple[str | None, str]:
    """(text, etag) of an image's caption, (None, "") without one. Several captions are lines.

    Raises UserError for a file that cannot be read, and for a link.
    """
    path = caption_file(image)
    if not is_file(path):
        return None, ""
    if path.is_symlink():
        raise UserError(f"{shown(path.name)} is a link, which is not changed here.")
    data = bounded.read_bytes(path, texts.MAX_BYTES, " as captions")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path.name)} is not UTF-8 text; save it as UTF-8.") from error
    if path.suffix.lower() == ".json":
        text = "\n".join(texts.read_file(path))
    return text.rstrip("\r\n"), digest_of(data)


def write_caption(image: Path, text: str | None, seen: str) -> str:
    """Replace an image's caption (None removes its file) and return the new etag.

    ``seen`` is the etag of what the person saw. Raises Changed if that is no longer there, and UserError.
    """
    path = caption_file(image)
    with _one_at_a_time:
        before, now = read_caption(image)
        if now != seen:
            raise Changed(f"{shown(path.name)} was changed by somebody else.", {"caption": before, "etag": now})
        if text is None:
            _do(path, lambda: path.unlink(missing_ok=True))
            return ""
        written = _as_json(path, text) if path.suffix.lower() == ".json" else text
        if len(written.encode()) > texts.MAX_BYTES:
            raise UserError(f"The caption of {shown(image.name)} is longer than {texts.MAX_BYTES} bytes.")
        _do(path, lambda: write_text(path, written))
        return digest_of(written.encode())


def _as_json(path: Path, text: str) -> str:
    """The JSON file's object with another caption; its other keys stay."""
    lines = [line for line in text.split("\n") if line.strip()]
    values = from_json(bounded.read_text(path, texts.MAX_BYTES)) if is_file(path) else {}
    return json.dumps({**values, "caption": lines if len(lines) > 1 else "".join(lines)}, ensure_ascii=False) + "\n"


# marks


def write_marks(root: Path, changes: Mapping[str, tuple[sidecar.Mark, sidecar.Mark]]) -> None:
    """Change marks. ``changes`` has for each picture's name the mark that the person saw, and the new mark.

    Raises Changed with the names whose mark is another one by now; nothing is written then.
    """
    with _one_at_a_time:
        current = _read_own(root)
        pictures = dict(current.pictures)
        other = {name: pictures.get(name, sidecar.Mark()) for name, (was, _) in changes.items()
                 if pictures.get(name, sidecar.Mark()) != was}  # fmt: skip
        if other:
            now = {name: {"exclude": mark.exclude, "repeat": mark.repeat} for name, mark in other.items()}
            raise Changed(f"{sidecar.NAME} was changed by somebody else: {shown(', '.join(other))}.", {"marks": now})
        pictures |= {name: mark for name, (_, mark) in changes.items()}
        _write_own(root, sidecar.Sidecar(pictures, current.masks))


def _read_own(root: Path) -> sidecar.Sidecar:
    path = root / sidecar.NAME
    if path.is_symlink():
        raise UserError(f"{sidecar.NAME} is a link, which is not changed here.")
    return sidecar.read(path)


def _write_own(root: Path, value: sidecar.Sidecar) -> None:
    path, text = root / sidecar.NAME, value.text()
    sidecar.parse(from_json(text))  # what cannot be read again is never written
    if len(text.encode()) > sidecar.MAX_BYTES:
        raise UserError(f"{sidecar.NAME} would be larger than {sidecar.MAX_BYTES} bytes.")
    _do(path, lambda: write_text(path, text))


# masks


def mask_folder(settings: DatasetSettings, root: Path, marks: sidecar.Sidecar) -> Path | None:
    """Where masks lie: the folder of Mask Options, or ``masks`` if some were painted there; None without any."""
    painted = root / sidecar.MASKS
    return settings.mask_options.folder or (painted if marks.masks else None)


def read_mask(folder: Path, root: Path, image: Path) -> tuple[bytes, str]:
    """(PNG, etag) of an image's mask, (b"", "") without one. Raises UserError if it is no PNG."""
    path = _mask_file(folder, root, image)
    if not is_file(path):
        return b"", ""
    data = bounded.read_bytes(path, MAX_MASK_BYTES)
    return data, digest_of(data)


def _mask_file(folder: Path, root: Path, image: Path) -> Path:
    path = folder / f"{name_of(image, root)}.png"
    others = [path.with_suffix(suffix) for suffix in SUFFIXES if suffix != ".png" and is_file(path.with_suffix(suffix))]
    if others or path.is_symlink():
        raise UserError(
            f"{shown((others or [path])[0].name)} is no PNG file of its own: only such masks are painted on."
        )
    return path


def write_mask(settings: DatasetSettings, root: Path, image: Path, data: str | None, seen: str) -> str:
    """Replace an image's mask by a PNG in base64 (None removes it) and return its etag.

    It goes to the folder of Mask Options, or else to ``masks``, which the sidecar then names. Raises Changed and
    UserError.
    """
    folder = settings.mask_options.folder or root / sidecar.MASKS
    path = _mask_file(folder, root, image)
    content = None if data is None else _mask_of(data, image)
    with _one_at_a_time:
        now = etag(path)
        if now != seen:
            raise Changed(f"The mask {shown(path.name)} was changed by somebody else.", {"etag": now})
        if content is None:
            _do(path, lambda: path.unlink(missing_ok=True))
            return ""
        if not settings.mask_options.folder and not (own := _read_own(root)).masks:
            _write_own(root, sidecar.Sidecar(own.pictures, True))
        _do(path, lambda: _write_bytes(path, content))
        return digest_of(content)


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _mask_of(data: str, image: Path) -> bytes:
    """The painted mask as an 8-bit grey PNG without anything else in it. Raises UserError for another shape."""
    try:
        given = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("The mask is no PNG in base64.") from error
    facts = examine(given) if len(given) <= MAX_MASK_BYTES else None
    if facts is None or facts.problem or not given.startswith(b"\x89PNG"):
        raise UserError(f"The mask is no PNG of at most {MAX_MASK_BYTES >> 20} MiB that can be read.")
    own = examine(bounded.read_bytes(image, 1 << 30))
    if own.problem or not same_shape(facts, own):
        raise UserError(f"The mask is {facts.width}x{facts.height}: it must have the shape of {shown(image.name)}.")
    held = io.BytesIO()
    with opened(given) as decoded:
        grey: Image.Image = to_grey(decoded)
        grey.save(held, "PNG", optimize=True)
    return held.getvalue()


def _do(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"{shown(path.name)} cannot be written ({reason(error)}).") from error
