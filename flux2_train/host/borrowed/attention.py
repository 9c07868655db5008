"""Attention with a gradient: the kernel that torch takes in ComfyUI's order, or the fastest of those that are there.

Which kernel is fastest depends on the card, the dtype and the number of tokens. So each is timed once for each shape,
forward and backward, on the query, key and value of the first pass that has this shape.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..system.rates import synchronize

COMFYUI = "comfyui"
OPTION = "flux2_train_attention"  # of a borrowed MODEL's transformer options: the ``Kernels`` of its run
TIMED = 3  # runs of each kernel, after one that is not timed
GAIN = 0.02  # of ComfyUI's time that another kernel must save: medians differ by that much by chance
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of the norm: rounding differs, sums do not
Attention = Callable[..., Tensor]


def _by_torch(backend: SDPBackend) -> Attention:
    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **_) -> Tensor:
        with sdpa_kernel(backend):
            return _joined(F.scaled_dot_product_attention(q, k, v))

    return attention


def _by_flash_attn(q: Tensor, k: Tensor, v: Tensor, heads: int, **_) -> Tensor:
    from flash_attn import flash_attn_func

    return _joined(flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2))


def _joined(out: Tensor) -> Tensor:
    """(B, tokens, heads * size) of (B, heads, tokens, size)."""
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


KERNELS: dict[str, Attention] = {
    "cudnn": _by_torch(SDPBackend.CUDNN_ATTENTION),
    "flash": _by_torch(SDPBackend.FLASH_ATTENTION),
    "memory-efficient": _by_torch(SDPBackend.EFFICIENT_ATTENTION),
    **({"flash-attn": _by_flash_attn} if importlib.util.find_spec("flash_attn") else {}),
}


class Kernels:
    """Attention for the passes of a run. If ``fastest``, the kernel is ``chosen`` by shape, else it is ComfyUI's.

    ``why`` has a few words with the times for each shape that was measured. Passes without gradients take the kernel
    that is chosen for their shape, and measure nothing.
    """

    def __init__(self, fastest: bool = False):
        self.fastest = fastest
        self.chosen: dict[str, str] = {}
        self.why: dict[str, str] = {}
        self.lock = threading.Lock()

    def of(self, args: tuple, kwargs: dict) -> Attention:
        """The attention for these arguments, which are those of ComfyUI's ``optimized_attention``."""
        if not self.fastest or kwargs.get("mask") is not None or not kwargs.get("skip_reshape"):
            return attention_pytorch
        q, k, v, heads = args[:4]
        shape = shape_of(q, k)
        if shape not in self.chosen and torch.is_grad_enabled():
            with self.lock:
                if shape not in self.chosen:
                    self._choose(shape, q, k, v, heads)
        return KERNELS.get(self.chosen.get(shape, COMFYUI), attention_pytorch)

    def __deepcopy__(self, _: dict) -> Kernels:
        return self  # of one run, in whatever copies of its MODEL's options

    def _choose(self, shape: str, *inputs) -> None:
        times = measured(*inputs)
        usual, best = times[COMFYUI], min(times, key=times.get)
        self.chosen[shape] = best if times[best] < (1 - GAIN) * usual else COMFYUI
        self.why[shape] = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times.items())

    def words(self) -> str:
        """What is chosen for each shape, as one line; empty if nothing is."""
        return "; ".join(
            f"{name} for {shape}{f' ({self.why[shape]})' if shape in self.why else ''}"
            for shape, name in self.chosen.items()
        )

    def state_dict(self) -> dict[str, str]:
        """What ``load_state_dict`` takes."""
        return dict(self.chosen)

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Take over what a run has chosen. A kernel that is not there is chosen anew."""
        self.chosen.update({shape: name for shape, name in state.items() if name == COMFYUI or name in KERNELS})


def shape_of(q: Tensor, k: Tensor) -> str:
    """What a kernel's speed depends on: the device, the dtype and the shape of query and key, in words."""
    batch, heads, tokens, size = q.shape
    others = "" if k.shape[2] == tokens else f" to {k.shape[2]}"
    kind = str(q.dtype).removeprefix("torch.")
    return f"{batch} x {heads} heads x {tokens}{others} tokens x {size}, {kind}, {q.device.type}"


def measured(q: Tensor, k: Tensor, v: Tensor, heads: int) -> dict[str, float]:
    """Seconds of each kernel that computes this attention and its gradients, forward and backward; ComfyUI's first.

    It runs in a thread of its own: modes and hooks of autograd that are active around a block must not see it.
    """
    found: dict[str, float] = {}
    thread = threading.Thread(target=_measure, args=(found, q.detach(), k.detach(), v.detach(), heads))
    thread.start()
    thread.join()
    return found


def _measure(found: dict[str, float], q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
    exact = None
    for name, attention in {COMFYUI: attention_pytorch, **KERNELS}.items():
        try:
            seconds, results = _timed(attention, q, k, v, heads)
        except Exception:  # each kernel says in its own way that it lacks a card, a dtype or memory
            if name == COMFYUI:
                found[name] = float("inf")
            continue
        exact = exact or results
        if all(_close(one, other) for one, other in zip(results, exact, strict=True)):
            found[name] = seconds


def _timed(attention: Attention, q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[float, tuple[Tensor, ...]]:
    """The median seconds of forward and backward, and what they give: the output and three gradients."""
    seconds, results = [], ()
    for _ in range(1 + TIMED):
        inputs = [tensor.requires_grad_() for tensor in (q.detach(), k.detach(), v.detach())]
        synchronize(q.device)
        began = time.perf_counter()
        out = attention(*inputs, heads, skip_reshape=True)
        results = (out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out)))
        synchronize(q.device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:]), results


def _close(one: Tensor, other: Tensor) -> bool:
    bound = CLOSE.get(other.dtype, 1e-4)
    return bool((one.float() - other.float()).norm() <= bound * other.float().norm())
