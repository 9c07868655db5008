"""What a browser of pictures shows of a data folder: sizes, captions, crop boxes, marks and warnings, page by page.

Sizes are read from headers, so that a page of a large folder is there at once; nothing is decoded.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...bounded import is_file
from ...errors import UserError
from ...hashing import canonical_hash
from ...names import shown
from ...settings.dataset_folder import FILE_NAME, JSONL, ONE_PROMPT, TEXT_FILE, DatasetSettings
from .. import captions as texts
from .. import crops, sidecar
from ..advice import LEAST_KEPT
from ..images import FORMATS, MAX_PIXELS, ORIENTATION
from ..index import Index, Signature, signature
from ..pairs import MayRead, anywhere, by_name, is_jsonl, listing, name_of
from . import edits

MOST_REMEMBERED = 50_000  # sizes of files
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_sizes: OrderedDict[tuple[str, Signature], crops.Size] = OrderedDict()


@dataclass(frozen=True)
class Folder:
    """The pictures of a data set's folder. ``captions`` are those of a JSONL file, by path; empty for others."""

    settings: DatasetSettings
    root: Path
    paths: tuple[Path, ...]
    marks: sidecar.Sidecar
    rows: dict[Path, list[str] | None]
    masks: dict[str, Path]

    @property
    def why_fixed(self) -> str:
        """Why captions cannot be edited here, empty if they can."""
        if self.rows:
            return "The captions come from a .jsonl file: edit that file."
        if self.settings.captions != TEXT_FILE:
            return (
                f"Dataset Folder takes captions from '{self.settings.captions}': set it to '{TEXT_FILE}' to edit them."
            )
        return ""


def open_folder(settings: DatasetSettings, may_read: MayRead = anywhere) -> Folder:
    """The names of a folder's pictures, and what its sidecar says. Raises UserError if it cannot be read."""
    place = settings.folder
    root = sidecar.root_of(place)
    if not place.is_dir() and not is_jsonl(place):
        raise UserError(f"There is no folder {place}; name a folder of images.")
    marks = sidecar.read(root / sidecar.NAME)
    masks = edits.mask_folder(settings, root, marks)
    tables = [place] if is_jsonl(place) else sorted(root.glob("*.jsonl"))[:1] if settings.captions == JSONL else []
    rows = {row.image: row.captions for table in tables for row in texts.read_jsonl(table)}
    if tables:
        paths = [path for path in rows if is_file(path) and may_read(path)]
    else:
        apart = (*settings.references, *([masks] if masks else []))
        paths = listing(root, settings.subfolders, apart, may_read)[0]
    there = by_name(masks, settings.subfolders, may_read) if masks and masks.is_dir() else {}
    return Folder(settings, root, tuple(path for path in paths if _is_text(path)), marks, rows, there)


def _is_text(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:  # a name from an old archive: reading the folder says so
        return False


def page(folder: Folder, start: int, count: int, index: Index) -> list[dict]:
    """The facts of ``count`` pictures from number ``start`` on, as JSON."""
    paths = folder.paths[start : start + count]
    digests = index.digests(list(paths)) if _needs_digests(folder.settings) else {}
    known = {path: each for path, each in digests.items() if isinstance(each, str)}
    faces = index.remembered("face", list(known.values())) if folder.settings.crop_options.wants_faces else {}
    return [_facts(folder, path, known.get(path, ""), faces.get(known.get(path, ""))) for path in paths]


def _needs_digests(settings: DatasetSettings) -> bool:
    """Whether crops depend on the content: those that are drawn at random do, and a face is found by content."""
    options = settings.crop_options
    return options.crop and ("random" in (options.crop_style, options.crop_aspect) or options.wants_faces)


def _facts(folder: Folder, path: Path, digest: str, face: object) -> dict:
    name = path.relative_to(folder.root).as_posix()
    mark = folder.marks.pictures.get(name, sidecar.Mark())
    mask = folder.masks.get(name_of(path, folder.root))
    found = {
        "name": name, "exclude": mark.exclude, "repeat": mark.repeat, "mask": bool(mask), "width": 0, "height": 0,
        "boxes": [], "sizes": [], "warnings": [], "stamp": "", **_caption(folder, path),
    }  # fmt: skip
    try:
        state, (width, height) = _size(path)
    except UserError as error:
        return {**found, "warnings": [*found["warnings"], str(error)]}
    options = folder.settings.crop_options
    action, why = crops.problem(width, height, options)
    made = crops.crops(width, height, digest, folder.settings.resolution, options, tuple(face) if face else None)
    cut = tuple(crop for crop in made if not crop.angle)  # turned ones lose a little more by themselves
    found |= {
        "width": width, "height": height, "stamp": canonical_hash([str(path), *state])[:16],
        "boxes": [_share(crop.box, width, height) for crop in cut],
        "sizes": list(dict.fromkeys(f"{crop.size[0]} x {crop.size[1]}" for crop in cut)),
    }  # fmt: skip
    warnings = [why] if action != crops.ACCEPT else list(_on_crops(cut, width, height))
    return {**found, "warnings": [*found["warnings"], *warnings]}


def _share(box: crops.Box, width: int, height: int) -> list[float]:
    """(left, top, right, bottom) as shares of the sides."""
    return [round(value / side, 5) for value, side in zip(box, (width, height) * 2, strict=True)]


def _on_crops(cut: tuple[crops.Crop, ...], width: int, height: int) -> Iterator[str]:
    areas = [(crop.box[2] - crop.box[0]) * (crop.box[3] - crop.box[1]) for crop in cut]
    if min(areas) < LEAST_KEPT * width * height:
        yield "loses more than a third of its area to the crop"
    if any(crop.size[0] > crop.box[2] - crop.box[0] + 8 for crop in cut):
        yield "is smaller than it is trained at and scaled up"


def _caption(folder: Folder, path: Path) -> dict:
    """The caption as it stands in its file, with the mark of its content (``edits``), or what takes its place."""
    settings = folder.settings
    if folder.rows:
        return _with_warnings("\n".join(folder.rows.get(path) or []) or None, "")
    if settings.captions == FILE_NAME:
        return _with_warnings(texts.from_file_name(path), "")
    if settings.captions == ONE_PROMPT:
        return _with_warnings(settings.prompt, "")
    try:
        text, mark = edits.read_caption(path)
    except UserError as error:
        return {"caption": None, "etag": "", "warnings": [str(error)]}
    return _with_warnings(text, mark)


def _with_warnings(text: str | None, mark: str) -> dict:
    warnings = ["no caption"] if text is None else ["the caption is empty"] if not text.strip() else []
    return {"caption": text, "etag": mark, "warnings": warnings}


def _size(path: Path) -> tuple[Signature, crops.Size]:
    """The state of a file, and its upright size as its header says. Raises UserError if that cannot be read."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{shown(path.name)} is no regular file")
        key = (str(path), signature(state))
        if key not in _sizes:
            _sizes[key] = _read_size(path)
            while len(_sizes) > MOST_REMEMBERED:
                _sizes.popitem(last=False)
        return key[1], _sizes[key]
    except UserError:
        raise
    except Exception as error:  # a broken file makes decoders raise almost anything
        raise UserError("cannot be read as an image") from error


def _read_size(path: Path) -> crops.Size:
    with Image.open(path, formats=FORMATS) as image:
        if min(image.size) < 1 or image.size[0] * image.size[1] > MAX_PIXELS:
            raise UserError("has more pixels than are read")
        sideways = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
        return image.size[::-1] if sideways else image.size
