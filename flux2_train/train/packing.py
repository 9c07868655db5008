"""Packs a nested state (what ``state_dict`` returns) into JSON and named tensors, and unpacks it bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor

TENSOR, TUPLE, ITEMS = "$tensor", "$tuple", "$items"  # keys of dicts that represent what JSON cannot hold


def pack(state) -> tuple[object, dict[str, Tensor]]:
    """(a value that JSON can hold, tensors by their path in the state). Tensors are copied to the CPU.

    The state may hold dicts, lists, tuples, numbers, texts, None and tensors. Raises TypeError for anything else.
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
    """A copy of the state with ordinary CPU tensors, also if the given ones were created in inference mode."""
    with torch.inference_mode(False):
        return unpack(*pack(state))


def _pack(value, path: str, tensors: dict[str, Tensor]):
    if isinstance(value, Tensor):
        name = path.removeprefix(".")
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(value, dict):
        packed = [(key, _pack(each, f"{path}.{key}", tensors)) for key, each in value.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(packed) if plain else {ITEMS: [list(pair) for pair in packed]}
    if isinstance(value, (list, tuple)):
        packed = [_pack(each, f"{path}.{number}", tensors) for number, each in enumerate(value)]
        return {TUPLE: packed} if isinstance(value, tuple) else packed
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{path} is {type(value).__name__}, which a checkpoint cannot hold")
