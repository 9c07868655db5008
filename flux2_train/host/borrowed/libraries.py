"""Which library multiplies matrices of fp32 on a CPU in compiled blocks: torch's usual one, or oneDNN.

torch multiplies fp32 with the library that it was built with, on x86 Intel's MKL. It also has oneDNN, which its own
compiler calls for models that are not trained. On AMD's processors oneDNN is the faster one, on others it need not be,
so both are timed once in a process. The results differ by the rounding of fp32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TOKENS, WIDTH = 256, 1024  # of the products that are timed
ROUNDS = 7
SMALL = 2**16  # numbers in a tensor; with fewer, the 15 microseconds that oneDNN needs to begin are not won back
FASTER = 0.97  # of torch's usual time: less is chance
ROUNDING = 1e-5  # relative to the largest number


class Library(NamedTuple):
    """Three products, as contiguous tensors.

    ``product`` gives ``x W^T + b`` of (..., in), (out, in) and (out,) or None. ``transposed`` gives ``g W`` of
    (..., out) and (out, in). ``over_rows`` gives ``g^T z`` (out, rank) of (rows, out) and (rows, rank).
    """

    product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    transposed: Callable[[Tensor, Tensor], Tensor]
    over_rows: Callable[[Tensor, Tensor], Tensor]


def _over_rows(grad: Tensor, narrow: Tensor) -> Tensor:
    return grad.t() @ narrow


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn_transposed(grad: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(grad, weight.t(), None, "none", [], "")


def _onednn_over_rows(grad: Tensor, narrow: Tensor) -> Tensor:
    wide = _onednn_product(narrow.t(), grad.t(), None)  # (rank, out), which takes half of the time of (out, rank)
    return wide.t().contiguous()


USUAL = Library(F.linear, torch.matmul, _over_rows)
ONEDNN = Library(_onednn_product, _onednn_transposed, _onednn_over_rows)


def fastest(tensor: Tensor) -> Library:
    """The library for products of a tensor like this one with weights: oneDNN for fp32 on a CPU where it is faster."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or tensor.numel() < SMALL:
        return USUAL
    return _fastest_of_cpu()


@cache
def _fastest_of_cpu() -> Library:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return USUAL
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        x, weight = (torch.randn(rows, WIDTH, generator=generator) for rows in (TOKENS, WIDTH))
        return ONEDNN if _agrees(x, weight) and _is_faster(x, weight) else USUAL


def _agrees(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's products are the usual ones up to rounding: a setting of torch may let it use fewer bits."""
    pairs = [(USUAL.product(x, weight, None), ONEDNN.product(x, weight, None)),
             (USUAL.transposed(x, weight), ONEDNN.transposed(x, weight))]  # fmt: skip
    return all((one - other).abs().max() <= ROUNDING * one.abs().max() for one, other in pairs)


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    def both_ways(library: Library) -> float:
        started = time.perf_counter()
        library.product(x, weight, None)
        library.transposed(x, weight)
        return time.perf_counter() - started

    ratios = [both_ways(ONEDNN) / both_ways(USUAL) for _ in range(ROUNDS)]
    return statistics.median(ratios) < FASTER
