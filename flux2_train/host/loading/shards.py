"""A model in several files, as its makers split it: name the first, the others are found beside it."""

from __future__ import annotations

import re
from pathlib import Path

from ... import safetensors_header as headers
from ...errors import UserError
from ...flavours import Flavour

NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def parts_of(path: Path) -> list[Path]:
    """All files of the model that ``path`` is one of, in order; itself alone where it is not split.

    Raises UserError naming those that are missing.
    """
    match = NUMBERED.fullmatch(path.name)
    if match is None:
        return [path]
    stem, total = match[1], int(match[3])
    found = [path.with_name(f"{stem}-{number:05d}-of-{total:05d}.safetensors") for number in range(1, total + 1)]
    missing = [part.name for part in found if not part.is_file()]
    if missing:
        raise UserError(
            f"{path.name} is one of {total} parts, but {', '.join(missing)} is not beside it; put it there."
        )
    return found


def stem_of(path: Path) -> str:
    """A model file's name without its ending, nor its number where it is one of several."""
    match = NUMBERED.fullmatch(path.name)
    return match[1] if match else path.stem


def require_tokenizer(parts: list[Path], flavour: Flavour) -> None:
    """Raise UserError if the text encoder's files lack the tokenizer that ComfyUI needs to find in them."""
    wanted = flavour.tokenizer_tensor
    for part in parts if wanted else ():
        if wanted in headers.read(part).tensors:
            return
    if wanted:
        names = " or ".join(file.name for file in flavour.text_encoders)
        raise UserError(
            f"{parts[0].name} holds no tokenizer ({wanted}), which ComfyUI needs for {flavour.name}'s text encoder: "
            f"use {names}, which has it."
        )
