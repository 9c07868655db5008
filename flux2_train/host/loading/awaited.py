"""Stand-ins for weights that are computed when they are first read.

A model that Load FLUX.2 quantises holds no weights until they are needed. Each weight is then a stand-in with the real
weight's shape, dtype and device, so ComfyUI's memory estimates are right. As soon as code computes with a stand-in,
saves it or asks for its memory, the real weight is computed and used instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Find = Callable[[], Tensor]


class Awaited(Tensor):
    """A CPU tensor without bytes, with the form of ``like``; ``find`` returns the tensor that it stands for."""

    @staticmethod
    def __new__(cls, like: Tensor, find: Find) -> Awaited:
        return Tensor._make_wrapper_subclass(cls, like.shape, strides=like.stride(), dtype=like.dtype, device="cpu")

    def __init__(self, like: Tensor, find: Find):
        self.find = find

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:  # called by nn.Parameter and .data: nothing is read yet
            return cls(args[0], args[0].find)
        args, kwargs = tree_map_only(Awaited, lambda tensor: tensor.find(), (args, kwargs or {}))
        return function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Awaited(shape={tuple(self.shape)}, dtype={self.dtype})"

    # torch does not dispatch the following through __torch_dispatch__.

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:  # nn.Module sets it when it moves a weight that was computed meanwhile
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
    """A stand-in parameter of ``weight``'s class; of a quantised weight, each inner tensor is a stand-in."""
    if hasattr(weight, "__tensor_flatten__"):
        names, context = weight.__tensor_flatten__()
        parts = {name: Awaited(getattr(weight, name), partial(_part, find, name)) for name in names}
        stand_in = type(weight).__tensor_unflatten__(parts, context, weight.size(), weight.stride())
    else:
        stand_in = Awaited(weight, find)
    stand_in._is_param = True  # makes it an nn.Parameter; the constructor of that would copy the scales
    return stand_in


def _part(find: Find, name: str) -> Tensor:
    weight = find()
    weight.__tensor_flatten__()  # sets the attributes that it names
    return getattr(weight, name)


def is_awaited(weight: Tensor) -> bool:
    """Whether a weight is a stand-in."""
    return isinstance(weight, Awaited) or isinstance(getattr(weight, "_qdata", None), Awaited)
