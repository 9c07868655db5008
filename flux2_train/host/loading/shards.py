"""A model that its makers split into several files: the user names one, the others are found beside it."""

from __future__ import annotations

import re
from pathlib import Path

from ... import safetensors_header
from ...errors import UserError
from ...flavours import Flavour

NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def parts_of(path: Path) -> list[Path]:
    """All files of the model that ``path`` belongs to, in order; only ``path`` if the model is one file.

    Raises UserError naming missing files.
    """
    match = NUMBERED.fullmatch(path.name)
    if match is None:
        return [path]
    stem, total = match[1], int(match[3])
    parts = [path.with_name(f"{stem}-{number:05d}-of-{total:05d}.safetensors") for number in range(1, total + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UserError(
            f"{path.name} is one of {total} parts, but {', '.join(missing)} is not beside it; put it there."
        )
    return parts


def stem_of(path: Path) -> str:
    """A model file's name without its extension, and without its number if the model is split."""
    match = NUMBERED.fullmatch(path.name)
    return match[1] if match else path.stem


def require_tokenizer(parts: list[Path], flavour: Flavour) -> None:
    """Raise UserError if ComfyUI needs a tokenizer inside the text encoder's files and none is there."""
    tokenizer = flavour.tokenizer_tensor
    if not tokenizer or any(tokenizer in safetensors_header.read(part).tensors for part in parts):
        return
    names = " or ".join(file.name for file in flavour.text_encoders)
    raise UserError(
        f"{parts[0].name} holds no tokenizer ({tokenizer}), which ComfyUI needs for {flavour.name}'s text encoder: "
        f"use {names}, which has it."
    )
