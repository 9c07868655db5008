"""Sizes and stored bytes of a MODEL that is already loaded, as the planner needs them."""

from __future__ import annotations

import sys
from collections import Counter

import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfy.sd import VAE
from torch import nn

from ..formats import COSTLIEST, PRECISIONS, of_layout
from ..planning.weights import Weights
from . import describe, identify
from .borrowed.borrow import linears
from .loading import deferred


def weights_of(model: ModelPatcher) -> Weights:
    """Sizes and stored bytes of a MODEL's Linears, in any format."""
    hidden, double, single, _ = identify.sizes(model)
    layers = linears(model)
    sizes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
    stored = {name: _bytes(layer) for name, layer in layers.items()}
    plain = frozenset(name for name, layer in layers.items() if _is_plain(layer.weight))
    return Weights(hidden, double, single, sizes, stored, plain, deferred.mapped(model))


def number_size(model: ModelPatcher) -> int:
    """Bytes of one number in the dtype that the model computes in."""
    return torch.empty((), dtype=model.model.get_dtype_inference()).element_size()


def decoding(vae: VAE, width: int, height: int) -> int:
    """Bytes that decoding one image of that size takes: the VAE's weights and ComfyUI's estimate for the rest."""
    shape = (1, vae.latent_channels, height // 16, width // 16)
    return round(vae.patcher.model_size() + vae.memory_used_decode(shape, vae.vae_dtype))


def precision_of(model: ModelPatcher) -> str:
    """Load FLUX.2's name for the format of the blocks' matrices, empty if it has none.

    The quantised layers themselves are looked at, because the precision "as in file" does not name a format. For a
    format that files have and Load FLUX.2 does not make, it is the one that takes most memory to dequantise.
    """
    kinds = Counter(getattr(layer.weight, "_layout_cls", "") for n, layer in linears(model).items() if "_blocks." in n)
    layout = max(kinds, key=kinds.get, default="")
    if layout:
        return of_layout(layout) or COSTLIEST
    return describe.precision_of(model) or ""


def dequantises_in_one_step(precision: str) -> bool:
    """Whether comfy-kitchen has a kernel here that dequantises this precision without intermediate fp32 tensors."""
    row, kitchen = PRECISIONS.get(precision), sys.modules.get("comfy_kitchen")
    if row is None or not row.kernel or kitchen is None:
        return False
    backends = kitchen.list_backends()
    gpu = [backends[name] for name in ("cuda", "hip", "triton") if name in backends]
    return any(b["available"] and not b["disabled"] and row.kernel in b["capabilities"] for b in gpu)


def _bytes(layer: nn.Module) -> int:
    weight = layer.weight
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    return sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])


def _is_plain(weight: torch.Tensor) -> bool:
    return not isinstance(weight, QuantizedTensor) and weight.dtype in (torch.bfloat16, torch.float16, torch.float32)
