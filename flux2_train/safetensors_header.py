"""Headers of safetensors files: names, types and shapes of the tensors, read without mapping the file.

A file of 64 GB cannot be mapped on every computer, and need not be: the header in its first kilobytes describes it all.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .bounded import is_file, reason
from .errors import UserError
from .names import shown

if TYPE_CHECKING:
    from safetensors import safe_open

LARGEST = 1 << 25  # bytes that a header may have; those of published models have less than 1 MB
LONGEST = 1 << 26  # bytes that a tensor read as text may have; the longest published one, tekken, has 19 MB
AGAIN = "Download it again."
# What loaders raise about the content of a file.
CONTENT = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
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
        raise UserError(f"{shown(path.name)} is not a safetensors file; only safetensors are read here.")
    text = _text(path)
    size = len(text)
    try:
        values = json.loads(text)
        metadata = {str(key): str(value) for key, value in (values.pop("__metadata__", None) or {}).items()}
        tensors = {name: _entry(entry, 8 + size) for name, entry in values.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{shown(path.name)} is no safetensors file whose header can be read: it is damaged. {AGAIN}"
        ) from error
    _require_complete(path, tensors, 8 + size)
    return Header(path, tensors, metadata)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file for reading its tensors as torch's. Raises UserError as ``read``, and for what the library
    alone notices."""
    from safetensors import SafetensorError, safe_open  # here, because a header alone needs no library

    read(path)
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{shown(path.name)} cannot be read ({reason(error)}). {AGAIN}") from error
    with naming(path, "a file whose tensors can be read"), file:
        yield file


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """What a loader raises inside about the content of the file at ``path`` becomes a UserError that names it.

    ``what`` says what the file should be. Errors about memory pass.
    """
    try:
        yield
    except UserError:
        raise
    except CONTENT as error:
        if "OutOfMemory" in type(error).__name__:
            raise
        why = shown(" ".join(str(error).split()) or type(error).__name__, 200)
        raise UserError(f"{shown(path.name)} is not {what} ({why}). {AGAIN}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # its class is not imported for a header alone
            raise
        raise UserError(f"{shown(path.name)} cannot be read ({error}). {AGAIN}") from error


def _text(path: Path) -> bytes:
    """The bytes of a file's header. Raises UserError."""
    if not is_file(path):
        raise UserError(f"{path} is not there, or is no regular file.")
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ValueError("the file is empty")
            return raw(file)
    except ValueError as error:
        raise UserError(
            f"{shown(path.name)} is no safetensors file whose header can be read: {error}. {AGAIN}"
        ) from error
    except OSError as error:
        raise UserError(f"{shown(path.name)} cannot be read ({reason(error)}).") from error


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
            f"{shown(path.name)} is incomplete: it has {size} bytes, its header speaks of {expected}. {AGAIN}"
        )
