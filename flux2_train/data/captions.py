"""Captions in the forms people keep them in, the trigger word, and the variants a step draws from."""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

from ..bounded import from_json, read_text
from ..errors import UserError
from ..names import shown
from ..settings.dataset_folder import JOIN, MOST_REFERENCES, CaptionSettings

PLACEHOLDER = "[trigger]"
SUFFIXES = (".txt", ".caption", ".json")
SIDECAR = "flux2_dataset.json"  # is about the folder and no caption, whatever an image is named
MAX_BYTES = 64 * 1024
MAX_LINES_BYTES = 1 << 25  # of a JSONL file
MOST_ROWS = 200_000  # of a JSONL file
MOST_VARIANTS = 1000  # captions of one image, each of which is encoded


def beside(image: Path) -> tuple[Path, ...]:
    """The files that may hold the caption of an image, the preferred first, whether they exist or not."""
    names = [image.stem + suffix for suffix in SUFFIXES]
    return tuple(image.with_name(name) for name in names if name != SIDECAR)


def read_file(path: Path) -> list[str]:
    """The captions in a text or JSON file: one per line, or the ``caption`` of a JSON object (a text or a list).

    Raises UserError with the file's name if it is too large, no UTF-8, or JSON without a caption.
    """
    text = read_text(path, MAX_BYTES, " as captions")
    if path.suffix.lower() == ".json":
        return _from_json(text, shown(path.name))
    return [line for line in map(_clean, text.splitlines()) if line]


def _from_json(text: str, name: str) -> list[str]:
    try:
        values = from_json(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}); correct it or use a .txt file.") from error
    if not isinstance(values, dict) or "caption" not in values:
        raise UserError(f'{name} has no key "caption"; write {{"caption": "..."}}.')
    return _strings(values["caption"], name)


def _strings(value: object, name: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) for v in values):
        raise UserError(f'"caption" in {name} is neither a text nor a list of texts; correct it.')
    return [v for v in map(_clean, values) if v]


def _clean(text: str) -> str:
    return " ".join(text.split())


@dataclass(frozen=True)
class Row:
    """One line of a JSONL file; ``captions`` is None where the line has none."""

    image: Path
    captions: list[str] | None
    controls: tuple[Path, ...]


def read_jsonl(path: Path) -> list[Row]:
    """The rows of a JSONL file with ``image``, ``caption`` and ``control`` (or other trainers' names for them).

    Paths are relative to the file and may not leave its folder. Raises UserError with file and line.
    """
    lines = read_text(path, MAX_LINES_BYTES, " as captions").split("\n")
    if len(lines) > MOST_ROWS:
        raise UserError(f"{shown(path.name)} has {len(lines)} lines; at most {MOST_ROWS} are read.")
    return [_row(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _row(line: str, path: Path, number: int) -> Row:
    where = f"{shown(path.name)}, line {number}"
    try:
        row = from_json(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); every line is one object.") from error
    if not isinstance(row, dict):
        raise UserError(f'{where} is no object; write {{"image": "a.png", "caption": "..."}}.')
    image = next((row[k] for k in ("image", "image_path", "file_name") if k in row), None)
    caption = next((row[k] for k in ("caption", "text") if k in row), None)
    controls = row.get("control", row.get("control_path", [])) or _numbered_controls(row)
    names = [image, *(controls if isinstance(controls, list) else [controls])]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f'{where} has no "image", or one that is no file name.')
    if len(names) - 1 > MOST_REFERENCES:
        raise UserError(f"{where} has {len(names) - 1} references; at most {MOST_REFERENCES} can be used.")
    first, *others = (_inside(path.parent, name, where) for name in names)
    return Row(first, None if caption is None else _strings(caption, where), tuple(others))


def _numbered_controls(row: dict) -> list:
    keys = [k for k in row if re.fullmatch(r"control_path_\d{1,4}", k)]
    return [row[k] for k in sorted(keys, key=lambda k: int(k.rsplit("_", 1)[1]))]


def _inside(folder: Path, name: str, where: str) -> Path:
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise UserError(f"{where} names a file that lies outside {folder}; name files relative to the JSONL file.")
    return path


def from_file_name(path: Path) -> str:
    """The caption in a file's name: the name without its ending, with spaces for ``_`` and ``-``."""
    return _clean(path.stem.replace("_", " ").replace("-", " "))


def has_word(text: str, word: str) -> bool:
    """Whether ``word`` occurs in ``text`` by itself: "man" is not in "woman"."""
    return re.search(_word(word), text) is not None


def _word(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def with_trigger(caption: str, trigger: str, instead: str | None = None, prepend: bool = True) -> str:
    """The caption with the trigger in the place of ``[trigger]``; with ``prepend`` put in front if it does not occur.

    With ``instead`` (the class word) every trigger is replaced by that word, which gives the class caption. Where the
    class word already follows the trigger ("ohwx dog"), only the trigger is removed.
    """
    text = caption.replace(PLACEHOLDER, trigger)
    if trigger and prepend and not has_word(text, trigger):
        text = f"{trigger}, {text}" if text else trigger
    if instead is not None and trigger:
        doubled = rf"{_word(trigger)}\s+{_word(instead)}"
        text = re.sub(doubled, lambda _: instead, text) if instead else text
        text = re.sub(_word(trigger), lambda _: instead, text)
    return _clean(text).strip(" ,")


def variants(captions: list[str], options: CaptionSettings, key: str, name: str = "An image") -> tuple[str, ...]:
    """The captions that a step draws from for one image, before triggers are put in.

    ``key`` identifies the image, so that each image is shuffled differently. Raises UserError with its ``name`` if it
    would have more than MOST_VARIANTS captions.
    """
    if options.several == JOIN:
        captions = [_clean(" ".join(captions))]
    captions = captions or [""]
    count = len(captions) * max(1, options.shuffle)
    if count > MOST_VARIANTS:
        raise UserError(
            f"{shown(name)} would get {count} captions, each of which is encoded; at most {MOST_VARIANTS} can be. "
            "Lower shuffle of Caption Options, join the lines, or write fewer."
        )
    if not options.shuffle:
        return tuple(dict.fromkeys(captions))
    rng = random.Random(f"{options.seed}/{key}")
    return tuple(dict.fromkeys(_shuffled(text, options, rng) for text in captions for _ in range(options.shuffle)))


def _shuffled(text: str, options: CaptionSettings, rng: random.Random) -> str:
    parts = [part.strip() for part in text.split(options.separator) if part.strip()]
    kept, free = parts[: options.keep_tokens], parts[options.keep_tokens :]
    if options.tag_dropout:
        free = [part for part in free if rng.random() >= options.tag_dropout]
    if not options.keep_order:
        rng.shuffle(free)
    glue = options.separator if options.separator.endswith(" ") else f"{options.separator} "
    return glue.join(kept + free)
