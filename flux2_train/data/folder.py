"""A folder of images and captions as a data set: found, checked and described before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..geometry import bucket
from .images import SUFFIXES, size_of

TEXT_FILE, FILE_NAME, ONE_PROMPT = "text file", "file name", "one prompt"
CAPTION_SOURCES = (TEXT_FILE, FILE_NAME, ONE_PROMPT)
PLACEHOLDER = "[trigger]"
MAX_CAPTION_BYTES = 64 * 1024


@dataclass(frozen=True)
class Item:
    """One image. ``class_caption`` has the class word in the trigger's place; without one it is the caption.

    ``references`` are what the image was made from, for edits.
    """

    path: Path
    size: tuple[int, int]
    caption: str
    class_caption: str
    references: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """What will be trained on. ``skipped`` names files that cannot be used, with the reason."""

    folder: Path
    items: tuple[Item, ...]
    repeats: int
    trigger: str
    class_word: str
    resolution: int
    skipped: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Changes when files, captions or sizes do; both caches carry it, so they cannot be mixed up."""
        rows = [
            (i.size, i.caption, i.class_caption, [(str(p), p.stat().st_mtime_ns) for p in (i.path, *i.references)])
            for i in self.items
        ]
        return hashlib.blake2b(json.dumps(rows).encode(), digest_size=12).hexdigest()

    def summary(self) -> str:
        """A few lines for the node: counts, buckets, warnings."""
        shapes = Counter(item.size for item in self.items)
        lines = [f"{len(self.items)} images x {self.repeats} from {self.folder.name}"]
        lines += [f"{w}x{h}: {n}" for (w, h), n in sorted(shapes.items())]
        lines += [f"skipped {reason}" for reason in self.skipped]
        return "\n".join(lines)


def read_folder(
    folder: Path,
    resolution: int,
    captions: str = TEXT_FILE,
    prompt: str = "",
    trigger: str = "",
    class_word: str = "",
    repeats: int = 1,
    references: Path | None = None,
) -> Dataset:
    """Read a data set folder (not its sub-folders), in order of file name.

    Captions come from ``captions``: a ``.txt`` beside the image (``prompt`` where there is none), the file name, or
    ``prompt`` for all. ``references`` is a folder with one image per image, of the same name, that each is an edit of.
    Raises UserError if nothing can be trained on, or captions or references are missing.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; name a folder of images.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    items, skipped, uncaptioned = [], [], []
    for path in paths:
        try:
            size = size_of(path)
        except UserError as error:
            skipped.append(str(error))
            continue
        caption = _caption(path, captions, prompt)
        if caption is None:
            uncaptioned.append(path.name)
            continue
        text = with_trigger(caption, trigger)
        class_text = with_trigger(caption, trigger, class_word) if class_word else text
        items.append(Item(path, bucket(*size, resolution), text, class_text, _references(path, references)))
    if uncaptioned:
        raise UserError(
            f"{len(uncaptioned)} of {len(paths)} images have no caption file ({', '.join(uncaptioned[:3])}, ...): "
            "add a .txt of the same name, fill in 'prompt' for them, or take captions from the file name."
        )
    if not items:
        reasons = f" ({'; '.join(skipped[:3])})" if skipped else ""
        raise UserError(f"{folder} holds no usable image{reasons}; it needs {', '.join(SUFFIXES[:4])} files.")
    return Dataset(folder, tuple(items), repeats, trigger, class_word, resolution, tuple(skipped))


def _references(path: Path, folder: Path | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    found = [p for s in SUFFIXES if (p := folder / f"{path.stem}{s}").is_file()]
    if not found:
        raise UserError(f"{path.name} has no reference: {folder} holds no image named {path.stem}.")
    size_of(found[0])  # refuses what is no image now rather than while encoding
    return (found[0],)


def _caption(path: Path, source: str, prompt: str) -> str | None:
    if source == FILE_NAME:
        return path.stem.replace("_", " ").replace("-", " ").strip()
    text = path.with_suffix(".txt")
    if source == TEXT_FILE and text.is_file():
        return _read_text(text)
    return prompt.strip() or None


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise UserError(f"{path.name} is {path.stat().st_size} bytes long; a caption may have {MAX_CAPTION_BYTES}.")
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text; save it as UTF-8.") from error


def with_trigger(caption: str, trigger: str, instead: str | None = None) -> str:
    """The caption with its trigger: in the place of ``[trigger]``, else put in front where it does not occur yet.

    ``instead`` (the class word) takes the trigger's place everywhere, which gives the class caption; where it already
    follows the trigger ("ohwx dog"), the trigger alone goes.
    """
    text = caption.replace(PLACEHOLDER, trigger)
    if trigger and trigger not in text:
        text = f"{trigger}, {text}" if text else trigger
    if instead is not None and trigger:
        text = text.replace(f"{trigger} {instead}", instead).replace(trigger, instead)
    return " ".join(text.split()).strip(" ,")
