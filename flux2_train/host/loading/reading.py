"""The tensors of a model, in one file or several, under ComfyUI's names: without bytes, mapped, or one by one.

A transformer with diffusers' names is renamed while it is read. The only tensors copied for that are those that must be
joined (q, k and v of the double blocks) or whose halves must be swapped (one modulation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ... import safetensors_header
from ...adapters import diffusers
from ...errors import UserError
from . import deferred, mapping

Named = dict[str, Tensor]


def outline(parts: Sequence[Path]) -> tuple[Named, dict[str, str]]:
    """The tensors without their bytes (except text), and the metadata. Raises UserError as ``deferred.outline``."""
    return _gathered(parts, deferred.outline)


def mapped(parts: Sequence[Path]) -> tuple[Named, dict[str, str]]:
    """The tensors memory-mapped, and the metadata."""
    return _gathered(parts, mapping.tensors)


def _gathered(parts: Sequence[Path], read: Callable[[Path], tuple[Named, dict[str, str]]]) -> tuple[Named, dict]:
    tensors, metadata = {}, {}
    for part in parts:
        part_tensors, part_metadata = read(part)
        tensors, metadata = tensors | part_tensors, metadata | part_metadata
    return _renamed(tensors, parts), metadata


def each(parts: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors one after the other; only the last one is held in memory."""
    with ExitStack() as stack:
        file_of = {}
        for part in parts:
            file = stack.enter_context(mapping.opened(part))
            file_of |= dict.fromkeys(file.keys(), file)
        for name, origin in _origins(file_of, parts).items():
            yield name, joined([file_of[key].get_tensor(key) for key in origin.keys], origin.swapped)


def names(parts: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """The names of the tensors, and the metadata, from the headers alone."""
    all_headers = [safetensors_header.read(part) for part in parts]
    metadata = {key: value for header in all_headers for key, value in header.metadata.items()}
    return list(_origins([name for header in all_headers for name in header.tensors], parts)), metadata


def joins(parts: Sequence[Path]) -> bool:
    """Whether tensors must be joined or swapped, which is so for a transformer with diffusers' names."""
    return diffusers.is_diffusers([name for part in parts for name in safetensors_header.read(part).tensors])


def joined(tensors: Sequence[Tensor], swapped: bool) -> Tensor:
    """Matrices of equal width joined along their rows; ``swapped`` exchanges the two halves of each one's rows."""
    pieces = [half for tensor in tensors for half in tensor.chunk(2)[::-1]] if swapped else tensors
    return tensors[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _origins(names, parts: Sequence[Path]) -> dict[str, diffusers.Origin]:
    if diffusers.is_diffusers(names):
        return diffusers.origins(names, parts[0].name)
    return {name: diffusers.Origin((name,)) for name in names}


def _renamed(tensors: Named, parts: Sequence[Path]) -> Named:
    if not diffusers.is_diffusers(tensors):
        return tensors
    renamed = {}
    for name, origin in diffusers.origins(tensors, parts[0].name).items():
        pieces = [tensors.pop(key) for key in origin.keys]
        if len({(tensor.dtype, tensor.shape[1:]) for tensor in pieces}) > 1:
            raise UserError(f"{parts[0].name}: {' and '.join(origin.keys)} differ in type or width; download it again.")
        renamed[name] = joined(pieces, origin.swapped)
    return renamed
