"""Attention as an operator that a compiler calls and does not look into, so that a recomputation can leave it out.

It is used where attention's output is kept (``recompute`` ``selective``).

The operator runs ComfyUI's attention, and remembers what its kernel has given: the output, and what the kernel's own
backward needs beside it. Backward builds torch's graph of attention from these and from query, key and value, without
running attention again. So the kernel is the one that torch chooses, with its own backward, on every device.

torch keeps compiled graphs and their backward on disk, and knows operators by their names alone. Whoever changes what
an operator gives, or its backward, has to change its name.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from types import SimpleNamespace

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor
from torch._C import DispatchKey

from .opaque import NAMESPACE, Call, registered
from .recompute import Giving, Keeping, Kept, attended

SCHEMAS = {
    "block_attention": "(Tensor q, Tensor k, Tensor v, Tensor block) -> (Tensor, Tensor)",
    "block_attention_gradients": "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor block, Tensor out, Tensor number) "
    "-> (Tensor, Tensor, Tensor)",
}
_numbers = itertools.count()
_kept: dict[int, Kept] = {}


def _run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_pytorch(q, k, v, q.shape[1], skip_reshape=True)


def _attention(q: Tensor, k: Tensor, v: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """The output (B, T, H D) for (B, H, T, D), and the number under which the kernel's outputs are kept.

    ``block`` is an ``opaque.Call``; of the last block, rows that nobody reads are zero. Kept outputs stay as
    long as the tensor with that number does: until autograd or a recomputation lets go of it.
    """
    kept: Kept = []
    rows = Call.of(block).rows
    with _autograd():  # kernels give what backward needs only where a gradient is wanted
        out = attended(partial(_noting, kept), *_leaves(rows.read(q, 2) if rows else q, k, v)).detach()
    out = rows.whole(out) if rows else out
    own = next(_numbers)
    _kept[own], number = kept, torch.tensor(own)
    weakref.finalize(number, _kept.pop, own, None)
    return out, number


def _noting(kept: Kept, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with Keeping(kept):
        return _run(q, k, v)


def _attention_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, block: Tensor, out: Tensor, number: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``q``, ``k`` and ``v`` as (B, T, H, D): kernels differ in how they lay them out in memory."""
    kept = list(_kept.get(number.item(), ()))  # empty where torch has no kernel of its own for these inputs
    rows = Call.of(block).rows
    q, grad = (rows.read(q, 2), rows.read(grad, 1)) if rows else (q, grad)
    with _autograd():
        inputs = _leaves(q, k, v)
        with Giving(kept) if kept else nullcontext():
            found = _run(*inputs)
        gradients = torch.autograd.grad(found, inputs, grad)
        of_q, of_k, of_v = (each.transpose(1, 2).contiguous() for each in gradients)
        return rows.whole(of_q) if rows else of_q, of_k, of_v


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd, below which operators run, inside one."""
    with torch._C._SetExcludeDispatchKeyGuard(DispatchKey.AutogradFunctionality, False), torch.enable_grad():
        yield


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _shape(q, k, v, block):
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads * width), torch.empty((), dtype=torch.int64)


def _shape_of_gradients(grad, q, k, v, block, out, number):
    return tuple(each.new_empty(each.transpose(1, 2).shape) for each in (q, k, v))


@cache
def register() -> SimpleNamespace:
    """Both operators, registered with torch when they are first asked for."""
    kernels = dict(zip(SCHEMAS, (_attention, _attention_gradients), strict=True))
    ops = registered(SCHEMAS, kernels, dict(zip(SCHEMAS, (_shape, _shape_of_gradients), strict=True)))

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output)

    def back(ctx, grad, _):
        found = ops.block_attention_gradients(grad, *ctx.saved_tensors)
        return *(each.transpose(1, 2) for each in found), None

    torch.library.register_autograd(f"{NAMESPACE}::block_attention", back, setup_context=keep, lib=ops.library)
    return ops
