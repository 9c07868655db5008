"""Writing a safetensors file tensor by tensor, for models larger than memory.

The safetensors library can only write tensors that are all in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..atomic import replacing, sweep

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
# torch has float8_e8m0fnu from 2.7 on
DTYPES = {getattr(torch, ours): name for ours, name in _NAMES.items() if hasattr(torch, ours)}
_ENTRY = 160  # bytes that a tensor takes in the header at most, apart from its name


def write(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    names: Iterable[str],
    metadata: dict[str, str],
    new: bool = False,
) -> None:
    """Write ``tensors`` in the order in which they come, one in memory at a time, and the file atomically.

    ``names`` must contain all their names. The header comes before the tensors but is known only after them: room for
    it is left free and padded with spaces, as the format allows. Tensors whose size is no multiple of 8 go last:
    readers want each tensor aligned, and the format allows no gap between two. With ``new`` raises FileExistsError if
    ``path`` exists at the end.
    """
    room = sum(len(json.dumps(name)) + _ENTRY for name in names) + len(json.dumps(metadata)) + _ENTRY
    room += -room % 8
    entries: dict[str, dict] = {}
    odd: list[tuple[str, Tensor]] = []
    sweep(path.parent)
    with replacing(path, new=new) as partial, partial.open("wb") as file:
        file.seek(8 + room)
        for name, tensor in tensors:
            if tensor.nbytes % 8:
                odd.append((name, tensor.detach().cpu().clone()))
            else:
                entries[name] = _append(file, tensor, 8 + room)
        for name, tensor in sorted(odd, key=lambda pair: -pair[1].element_size()):
            entries[name] = _append(file, tensor, 8 + room)
        header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
        if len(header) > room:
            raise ValueError(f"{len(entries)} tensors came, which is more than was said")
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header.ljust(room))


def _append(file: BinaryIO, tensor: Tensor, start: int) -> dict:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    begin = file.tell() - start
    file.write(memoryview(data))
    return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, begin + data.nbytes]}
