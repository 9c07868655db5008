"""Blocks that keep little for backward: their inputs, or those and what attention gave, or those in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint, noop_context_fn

from ...planning.layout import SELECTIVE
from ...streaming.saved_tensors import offloaded

STREAMS = ("img", "txt", "x")  # what blocks change in place, by name
# Attention by the name of its kernel: on CUDA and ROCm by shape and dtype one of several, on a CPU one.
ATTENTION = [
    getattr(torch.ops.aten, name).default
    for name in ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
                 "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu")
    if hasattr(torch.ops.aten, name)
]  # fmt: skip
Kept = list[tuple[tuple, list[int]]]  # what attention gave, in the order in which it ran, and these tensors' versions
_around: ContextVar[TorchDispatchMode | None] = ContextVar("_around", default=None)


def attended(attention: Callable, *args, **kwargs):
    """What ``attention`` gives; in a block that keeps it, kept the first time and given instead of run the second.

    Only what runs in here is looked at operation by operation: to do that with all of a block's operations takes a
    tenth more of the processor's time, for which a card would wait.
    """
    mode = _around.get()
    if mode is None:
        return attention(*args, **kwargs)
    with mode:
        return attention(*args, **kwargs)


class _Keeping(TorchDispatchMode):
    """Keeps what attention gives."""

    def __init__(self, kept: Kept):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function in ATTENTION:
            self.kept.append(_alias(found))
        return found


class _Giving(_Keeping):
    """Gives what was kept instead of running attention once more."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in ATTENTION:
            return function(*args, **(kwargs or {}))
        found, versions = self.kept.pop(0)
        if versions != _versions(found):
            raise RuntimeError("what attention gave was changed in place, and cannot be kept for recomputation")
        return found


@contextmanager
def _attended_in(mode: TorchDispatchMode) -> Iterator[None]:
    """A context in which ``attended`` looks at attention's operations with ``mode``."""
    before = _around.set(mode)
    try:
        yield
    finally:
        _around.reset(before)


def _alias(found: tuple) -> tuple[tuple, list[int]]:
    """The same memory without what autograd will add to these tensors, and their versions, which are shared."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        aliases = tree_map_only(Tensor, Tensor.detach, found)
    return aliases, _versions(aliases)


def _versions(found: tuple) -> list[int]:
    return [each._version for each in found if isinstance(each, Tensor)]


def _keeping_attention() -> tuple:
    """Contexts for a block's first run and for its recomputation.

    torch's own (create_selective_checkpoint_contexts) raise in torch 2.14, not yet in 2.11, where the second run calls
    any operation more often than the first. It does where weights come through a ring of buffers.
    """
    kept: Kept = []
    return _attended_in(_Keeping(kept)), _attended_in(_Giving(kept))


class Recompute:
    """Runs a block as the layout of ``how`` says at that moment. A block's number counts both kinds."""

    def __init__(self, how):
        self.how = how

    def __call__(self, original: Callable, number: int, *args, **kwargs):
        layout = self.how.layout
        if not torch.is_grad_enabled() or not layout.recomputes(number):
            return original(*args, **kwargs)
        streams = {name: kwargs.pop(name) for name in STREAMS if name in kwargs}
        run = partial(_on_copies, original, args[1:], kwargs, tuple(streams))
        contexts = noop_context_fn
        if layout.checkpointing == SELECTIVE:
            contexts = _keeping_attention
        with offloaded() if layout.offload_activations else nullcontext():
            # As arguments of their own, so that whoever counts or moves what autograd saves sees these tensors too.
            return checkpoint(run, *args[:1], *streams.values(), use_reentrant=False, context_fn=contexts)


def _on_copies(original: Callable, args: tuple, kwargs: dict, names: tuple[str, ...], *streams: Tensor):
    """Run a block on copies of the streams it changes in place: its first argument or those that ``names`` says."""
    copies = [stream.clone() for stream in streams]
    first = copies[: len(copies) - len(names)]
    return original(*first, *args, **dict(zip(names, copies[len(first) :], strict=True)), **kwargs)
