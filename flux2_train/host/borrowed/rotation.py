"""Rotary embeddings by comfy-kitchen's kernel, which ComfyUI itself uses where no gradient is needed.

ComfyUI's training path writes RoPE as several operations on fp32 copies of query and key, which autograd repeats in
backward. The kernel takes one pass over both. A rotation is linear, so its backward is the kernel again with the
transposed matrices. ComfyUI's ``attn1_patch`` is asked for query, key and embeddings before it rotates; a patch that
returns no embeddings has done it.
"""

from __future__ import annotations

import comfy.quant_ops
import torch
from torch import Tensor

KERNEL_DTYPES = {torch.float32, torch.bfloat16, torch.float16}
KERNEL_DEVICES = {"cpu", "cuda"}


class Rotations:
    """The rotations of one pass of the model, as an ``attn1_patch``.

    Where comfy-kitchen has no kernel (another device, float64), ComfyUI rotates as before.
    """

    def __init__(self):
        self.transposed: list[tuple[Tensor, Tensor]] = []  # embeddings, and what turns back: routing has two kinds

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None = None, **_) -> dict:
        """``q`` and ``k`` (B, heads, tokens, 128) rotated by ``pe`` (B, 1, tokens, 64, 2, 2) fp32."""
        if pe is None or not _has_kernel(q, k, pe):
            return {}
        q, k = _Rotated.apply(q, k, pe, self)
        return {"q": q, "k": k, "pe": None}

    def back(self, pe: Tensor) -> Tensor:
        """The transposed rotations, made once for all blocks that share ``pe``."""
        for known, transposed in self.transposed:
            if known is pe:
                return transposed
        self.transposed = [*self.transposed[-1:], (pe, pe.transpose(-1, -2).contiguous())]
        return self.transposed[-1][1]


def available() -> bool:
    """Whether this ComfyUI has comfy-kitchen's kernel."""
    return hasattr(getattr(comfy.quant_ops, "ck", None), "apply_rope")


def _has_kernel(q: Tensor, k: Tensor, pe: Tensor) -> bool:
    known = {q.dtype, k.dtype} <= KERNEL_DTYPES and pe.dtype == torch.float32
    return known and q.device.type in KERNEL_DEVICES and not pe.requires_grad


class _Rotated(torch.autograd.Function):
    """``q' = R q``, ``k' = R k`` with ``dq = R^T dq'``, ``dk = R^T dk'``; ``pe``, which never changes, is not saved."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, pe: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor]:
        ctx.pe, ctx.rotations = pe, rotations
        return comfy.quant_ops.ck.apply_rope(q.detach(), k.detach(), pe)  # the kernel refuses what requires gradients

    @staticmethod
    def backward(ctx, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        if grad_q.stride() != grad_k.stride():  # the kernel is only known with both in the same layout
            grad_q, grad_k = grad_q.contiguous(), grad_k.contiguous()
        return *comfy.quant_ops.ck.apply_rope(grad_q, grad_k, ctx.rotations.back(ctx.pe)), None, None
