"""A nested state (what ``state_dict`` gives) as JSON and named tensors, and back: the same types, the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

TENSOR, TUPLE, ITEMS = "$tensor", "$tuple", "$items"  # keys of the dicts that stand for what JSON does not have


def pack(state) -> tuple[object, dict[str, Tensor]]:
    """(what JSON can hold, tensors by their place). Tensors are copied to the CPU, so the state may change afterwards.

    Holds dicts, lists, tuples, numbers, texts, None and tensors. Raises TypeError for anything else.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(state, "", tensors), tensors


def unpack(packed, tensors: dict[str, Tensor]):
    """Inverse of ``pack``."""
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    if not isinstance(packed, dict):
        return packed
    if TENSOR in packed:
        return tensors[packed[TENSOR]]
    if TUPLE in packed:
        return tuple(unpack(value, tensors) for value in packed[TUPLE])
    if ITEMS in packed:
        return {key: unpack(value, tensors) for key, value in packed[ITEMS]}
    return {key: unpack(value, tensors) for key, value in packed.items()}


def copied(state):
    """The state with tensors of its own, ordinary ones even where the given ones were made in inference mode."""
    with torch.inference_mode(False):
        return unpack(*pack(state))


def _pack(value, place: str, tensors: dict[str, Tensor]):
    if isinstance(value, Tensor):
        name = place.removeprefix(".")
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(value, dict):
        packed = [(key, _pack(each, f"{place}.{key}", tensors)) for key, each in value.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(packed) if plain else {ITEMS: [list(pair) for pair in packed]}
    if isinstance(value, (list, tuple)):
        packed = [_pack(each, f"{place}.{number}", tensors) for number, each in enumerate(value)]
        return {TUPLE: packed} if isinstance(value, tuple) else packed
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{place} is {type(value).__name__}, which a checkpoint cannot hold")
