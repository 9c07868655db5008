"""Stand-ins for weights that are made when they are first read.

A model that Load FLUX.2 is to quantise has no bytes until somebody needs them. Its weights then have their shape, dtype
and place, so that ComfyUI's estimates and other nodes see what they will get, and whoever computes with one, saves it
or asks for its memory gets the weight itself, which is made for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Find = Callable[[], Tensor]


class Awaited(Tensor):
    """A tensor on the CPU without bytes, like ``like``; ``find`` makes and returns the one it stands for."""

    @staticmethod
    def __new__(cls, like: Tensor, find: Find) -> Awaited:
        return Tensor._make_wrapper_subclass(cls, like.shape, strides=like.stride(), dtype=like.dtype, device="cpu")

    def __init__(self, like: Tensor, find: Find):
        self.find = find

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:  # what nn.Parameter and .data ask for: still nothing is read
            return cls(args[0], args[0].find)
        args, kwargs = tree_map_only(Awaited, lambda tensor: tensor.find(), (args, kwargs or {}))
        return function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Awaited(shape={tuple(self.shape)}, dtype={self.dtype})"

    # What torch answers without dispatching.

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:  # how nn.Module moves a weight that has come on the way
        self.find().data = value

    def data_ptr(self) -> int:
        return self.find().data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.find().untyped_storage()

    def to(self, *args, **kwargs) -> Tensor:
        like = torch.empty(0, dtype=self.dtype)
        return self if like.to(*args, **kwargs) is like else self.find().to(*args, **kwargs)

    def numpy(self, *, force: bool = False):
        return self.find().numpy(force=force)

    def tolist(self) -> list:
        return self.find().tolist()

    def __deepcopy__(self, memo: dict) -> Tensor:
        return self.find().__deepcopy__(memo)

    def __reduce_ex__(self, protocol: int):
        return self.find().__reduce_ex__(protocol)


def awaited(weight: Tensor, find: Find) -> Tensor:
    """A parameter that stands for ``weight``, of the same class; where that is quantised its parts are stand-ins."""
    if hasattr(weight, "__tensor_flatten__"):
        names, context = weight.__tensor_flatten__()
        parts = {name: Awaited(getattr(weight, name), partial(_part, find, name)) for name in names}
        found = type(weight).__tensor_unflatten__(parts, context, weight.size(), weight.stride())
    else:
        found = Awaited(weight, find)
    found._is_param = True  # what makes it an nn.Parameter, whose constructor would copy the scales
    return found


def _part(find: Find, name: str) -> Tensor:
    weight = find()
    weight.__tensor_flatten__()  # which sets the attributes that it names
    return getattr(weight, name)


def is_awaited(weight: Tensor) -> bool:
    """Whether a weight is one of these stand-ins."""
    return isinstance(weight, Awaited) or isinstance(getattr(weight, "_qdata", None), Awaited)
