"""The tensors of a model's files, of one file or several, by ComfyUI's names: without bytes, mapped, or one by one.

A transformer under diffusers' names is renamed on the way. Only what is joined or turned round takes memory of its own
then: q, k and v of the double blocks, and one modulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ... import safetensors_header as headers
from ...adapters import diffusers
from ...errors import UserError
from . import deferred, mapping

Named = dict[str, Tensor]


def outline(parts: Sequence[Path]) -> tuple[Named, dict[str, str]]:
    """The tensors without their bytes, but for text, and the metadata. Raises UserError as ``deferred.outline``."""
    return _gathered(parts, deferred.outline)


def mapped(parts: Sequence[Path]) -> tuple[Named, dict[str, str]]:
    """The tensors memory-mapped, and the metadata."""
    return _gathered(parts, mapping.tensors)


def _gathered(parts: Sequence[Path], read: Callable[[Path], tuple[Named, dict[str, str]]]) -> tuple[Named, dict]:
    tensors, metadata = {}, {}
    for part in parts:
        found, said = read(part)
        tensors, metadata = tensors | found, metadata | said
    return _renamed(tensors, parts), metadata


def each(parts: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """One tensor after the other: of those that are read, only the one that was given last is held."""
    with ExitStack() as stack:
        places = {}
        for part in parts:
            file = stack.enter_context(mapping.opened(part))
            places |= dict.fromkeys(file.keys(), file)
        for name, origin in _origins(places, parts).items():
            yield name, joined([places[key].get_tensor(key) for key in origin.keys], origin.swapped)


def names(parts: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """The names of the tensors, and the metadata, from the headers alone."""
    found = [headers.read(part) for part in parts]
    metadata = {key: value for header in found for key, value in header.metadata.items()}
    return list(_origins([name for header in found for name in header.tensors], parts)), metadata


def joins(parts: Sequence[Path]) -> bool:
    """Whether tensors have to be joined or turned round: those of a transformer under diffusers' names."""
    return diffusers.is_diffusers([name for part in parts for name in headers.read(part).tensors])


def joined(tensors: Sequence[Tensor], swapped: bool) -> Tensor:
    """Matrices with as many columns one below the other; ``swapped``: the halves of the rows trade places."""
    pieces = [half for tensor in tensors for half in tensor.chunk(2)[::-1]] if swapped else tensors
    return tensors[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _origins(names, parts: Sequence[Path]) -> dict[str, diffusers.Origin]:
    if diffusers.is_diffusers(names):
        return diffusers.origins(names, parts[0].name)
    return {name: diffusers.Origin((name,)) for name in names}


def _renamed(tensors: Named, parts: Sequence[Path]) -> Named:
    if not diffusers.is_diffusers(tensors):
        return tensors
    found = {}
    for name, origin in diffusers.origins(tensors, parts[0].name).items():
        pieces = [tensors.pop(key) for key in origin.keys]
        if len({(tensor.dtype, tensor.shape[1:]) for tensor in pieces}) > 1:
            raise UserError(f"{parts[0].name}: {' and '.join(origin.keys)} differ in type or width; download it again.")
        found[name] = joined(pieces, origin.swapped)
    return found
