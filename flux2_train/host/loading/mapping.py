"""Safetensors files mapped into memory, even those larger than memory.

The safetensors library maps files copy-on-write. Linux reserves memory for the copies, so it refuses a file larger than
memory and swap ("unable to mmap"). A shared, read-only mapping needs no reserve, because its pages can be read again at
any time. Writing to a tensor in such a mapping crashes the process, so it is used only if the library's way fails.
With dynamic VRAM, core maps every file read-only.
"""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path

import comfy.utils
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ... import safetensors_header
from ...adapters.stream import DTYPES
from ...errors import UserError

# What the library raises if it cannot map a file, and what ComfyUI makes of that for a damaged one.
REFUSED = (OSError, RuntimeError, MemoryError, SafetensorError, ValueError)
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


def dtype_of(header: safetensors_header.Header, name: str) -> torch.dtype:
    """torch's dtype of a tensor in a file. Raises UserError for a dtype that ComfyUI does not use."""
    dtype = header.tensors[name].dtype
    if dtype not in _BY_NAME:
        raise UserError(f"{header.path.name} holds {name} as {dtype}, which cannot be read; use another file.")
    return _BY_NAME[dtype]


class ReadOnly:
    """A safetensors file mapped read-only, with those methods of the library's file that are used here.

    Raises UserError if the file is damaged, or if the process is not allowed to map it.
    """

    def __init__(self, path: Path):
        self.header = safetensors_header.read(path)
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            size = path.stat().st_size / 1e9
            raise UserError(
                f"{path.name} ({size:.1f} GB) cannot be mapped into this process's memory ({error}). Nothing of it has "
                "to fit into memory for that, but a limit on the process's address space must leave room for all of "
                "it: lift that limit (ulimit -v unlimited), or use a smaller file of the same model, such as fp8."
            ) from error

    def __enter__(self) -> ReadOnly:
        return self

    def __exit__(self, *_) -> None:
        """Does nothing: the file stays mapped as long as one of its tensors exists."""

    def keys(self) -> list[str]:
        return list(self.header.tensors)

    def metadata(self) -> dict[str, str]:
        return self.header.metadata

    def get_tensor(self, name: str) -> Tensor:
        """A tensor; writing to it would crash the process."""
        entry = self.header.tensors[name]
        dtype = dtype_of(self.header, name)
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(self.data, dtype=torch.uint8, count=entry.nbytes, offset=entry.start)
        return flat.view(dtype).view(entry.shape)


def opened(path: Path) -> safe_open | ReadOnly:
    """A safetensors file whose tensors are read one by one (``keys``, ``metadata``, ``get_tensor``).

    It is a context manager. Raises FileNotFoundError, and UserError as ``ReadOnly``.
    """
    try:
        return safe_open(path, framework="pt")
    except REFUSED as error:
        _raise_if_unreadable(error)
    return ReadOnly(path)


def tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, mapped, and its metadata. Raises as ``opened``."""
    try:
        named, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
        return named, metadata or {}
    except REFUSED as error:
        _raise_if_unreadable(error)
    file = ReadOnly(path)
    return {name: file.get_tensor(name) for name in file.header.tensors}, file.metadata()


def _raise_if_unreadable(error: BaseException) -> None:
    """Raise the error again if the file does not exist or may not be read."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        raise error
