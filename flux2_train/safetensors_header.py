"""Headers of safetensors files: names, types and shapes of the tensors, read without mapping the file.

A file of 64 GB cannot be mapped everywhere, and need not be: what a model is stands in the first few kilobytes.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

LARGEST = 1 << 25  # bytes of a header that are read; those of published models take less than 1 MB
LONGEST = 1 << 26  # bytes of a tensor that is read as text; tekken, the longest there is, has 19 MB
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its type by the format's name, its shape, and where in the file its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    path: Path
    tensors: dict[str, Entry]
    metadata: dict[str, str]

    def read(self, name: str) -> bytes:
        """The bytes of a small tensor. Raises UserError for one of more than LONGEST bytes."""
        entry = self.tensors[name]
        if entry.nbytes > LONGEST:
            raise UserError(f"{self.path.name}: {name} has {entry.nbytes} bytes, at most {LONGEST} are read as text.")
        with self.path.open("rb") as file:
            file.seek(entry.start)
            return file.read(entry.nbytes)


def raw(file: BinaryIO, largest: int = LARGEST) -> bytes:
    """The header of an open file as it stands there, after which the file is at its first tensor.

    Raises ValueError, with why it cannot be read, for one of more than ``largest`` bytes and one that is cut short.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > largest:
        raise ValueError(f"it would take {size} bytes, at most {largest} are expected")
    text = file.read(size)
    if len(text) < size:
        raise ValueError("it is damaged")
    return text


def read(path: Path) -> Header:
    """The header of a safetensors file.

    Raises UserError for what is no safetensors file, and for one that is damaged or shorter than its header says.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is not a safetensors file; only safetensors are read here.")
    with path.open("rb") as file:
        try:
            text = raw(file)
        except ValueError as error:
            raise UserError(
                f"{path.name} is no safetensors file whose header can be read: {error}. Download it again."
            ) from error
        size = len(text)
    try:
        found = json.loads(text)
        metadata = {str(key): str(value) for key, value in (found.pop("__metadata__", None) or {}).items()}
        tensors = {name: _entry(entry, 8 + size) for name, entry in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path.name} is no safetensors file whose header can be read: it is damaged. Download it again."
        ) from error
    _require_whole(path, tensors, 8 + size)
    return Header(path, tensors, metadata)


def _entry(entry: dict, data: int) -> Entry:
    """An entry of the header, whose data begins at that byte of the file. Raises ValueError for one that is wrong."""
    dtype, shape, (start, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, end)
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers) or len(shape) > 16:
        raise ValueError("sizes must be whole numbers from zero on")
    if end < start or (dtype in _BYTES and end - start != prod(shape) * _BYTES[dtype]):
        raise ValueError("a tensor's bytes must be those of its shape and type")
    return Entry(dtype, shape, data + start, data + end)


def _require_whole(path: Path, tensors: dict[str, Entry], data: int) -> None:
    there, expected = path.stat().st_size, max((entry.end for entry in tensors.values()), default=data)
    if there < expected:
        raise UserError(
            f"{path.name} is incomplete: it has {there} bytes, its header speaks of {expected}. Download it again."
        )
