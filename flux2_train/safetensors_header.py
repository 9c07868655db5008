"""Headers of safetensors files: names, types and shapes of the tensors, read without mapping the file.

A file of 64 GB cannot be mapped on every computer, and need not be: the header in its first kilobytes describes it all.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

LARGEST = 1 << 25  # bytes that a header may have; those of published models have less than 1 MB
LONGEST = 1 << 26  # bytes that a tensor read as text may have; the longest published one, tekken, has 19 MB
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its type as the format names it, its shape, and the positions of its bytes in the file."""

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
    """The header of a safetensors file."""

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
    """The bytes of an open file's header; afterwards the file's position is at its first tensor.

    Raises ValueError with the reason if the header has more than ``largest`` bytes or the file ends within it.
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

    Raises UserError if it is no safetensors file, is damaged, or is shorter than its header says.
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
        values = json.loads(text)
        metadata = {str(key): str(value) for key, value in (values.pop("__metadata__", None) or {}).items()}
        tensors = {name: _entry(entry, 8 + size) for name, entry in values.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path.name} is no safetensors file whose header can be read: it is damaged. Download it again."
        ) from error
    _require_complete(path, tensors, 8 + size)
    return Header(path, tensors, metadata)


def _entry(entry: dict, data: int) -> Entry:
    """One tensor's entry; the file's tensors begin at byte ``data``. Raises ValueError if the entry makes no sense."""
    dtype, shape, (start, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, end)
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers) or len(shape) > 16:
        raise ValueError("sizes must be whole numbers from zero on")
    if end < start or (dtype in _BYTES and end - start != prod(shape) * _BYTES[dtype]):
        raise ValueError("a tensor's bytes must be those of its shape and type")
    return Entry(dtype, shape, data + start, data + end)


def _require_complete(path: Path, tensors: dict[str, Entry], data: int) -> None:
    size, expected = path.stat().st_size, max((entry.end for entry in tensors.values()), default=data)
    if size < expected:
        raise UserError(
            f"{path.name} is incomplete: it has {size} bytes, its header speaks of {expected}. Download it again."
        )
