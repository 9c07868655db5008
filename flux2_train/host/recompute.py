"""Blocks that keep little for backward: their inputs, or those and what attention gave, or those in host memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from ..layout import SELECTIVE
from ..memory.offload import offloaded

STREAMS = ("img", "txt", "x")  # what blocks change in place, by name
# Attention by the name of its kernel: on CUDA and ROCm by shape and dtype one of several, on a CPU one.
ATTENTION = [
    getattr(torch.ops.aten, name).default
    for name in ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
                 "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu")
    if hasattr(torch.ops.aten, name)
]  # fmt: skip


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
            contexts = partial(create_selective_checkpoint_contexts, ATTENTION)
        with offloaded() if layout.offload_activations else nullcontext():
            # As arguments of their own, so that whoever counts or moves what autograd saves sees these tensors too.
            return checkpoint(run, *args[:1], *streams.values(), use_reentrant=False, context_fn=contexts)


def _on_copies(original: Callable, args: tuple, kwargs: dict, names: tuple[str, ...], *streams: Tensor):
    """Run a block on copies of the streams it changes in place: its first argument or those that ``names`` says."""
    copies = [stream.clone() for stream in streams]
    first = copies[: len(copies) - len(names)]
    return original(*first, *args, **dict(zip(names, copies[len(first) :], strict=True)), **kwargs)
