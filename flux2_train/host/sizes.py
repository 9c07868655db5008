"""The planner's view of a MODEL that is loaded already."""

from __future__ import annotations

import sys
from collections import Counter

import torch
from comfy.quant_ops import QuantizedTensor
from torch import nn

from ..formats import PRECISIONS, of_layout
from ..planning.weights import Weights
from . import describe, identify
from .borrowed.borrow import linears


def weights_of(model) -> Weights:
    """Sizes and stored bytes of a MODEL's Linears, whatever format they have."""
    hidden, double, single, _ = identify.sizes(model)
    layers = linears(model)
    sizes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
    stored = {name: _bytes(layer) for name, layer in layers.items()}
    plain = frozenset(name for name, layer in layers.items() if _is_plain(layer.weight))
    return Weights(hidden, double, single, sizes, stored, plain)


def number_size(model) -> int:
    """Bytes of a number as the model computes."""
    return torch.empty((), dtype=model.model.get_dtype_inference()).element_size()


def decoding(vae, width: int, height: int) -> int:
    """Bytes of a VAE, and of what ComfyUI takes it to need to decode one image of that size."""
    shape = (1, vae.latent_channels, height // 16, width // 16)
    return round(vae.patcher.model_size() + vae.memory_used_decode(shape, vae.vae_dtype))


def precision_of(model) -> str:
    """Load FLUX.2's name for how the blocks' matrices are stored, empty where it has none.

    Quantised ones are looked at: a file that is loaded as it is says nothing of its format.
    """
    kinds = Counter(getattr(layer.weight, "_layout_cls", "") for n, layer in linears(model).items() if "_blocks." in n)
    layout = max(kinds, key=kinds.get, default="")
    return of_layout(layout) or describe.precision_of(model) or ""


def dequantises_in_one_step(precision: str) -> bool:
    """Whether comfy-kitchen has a kernel for it on this computer, which makes the numbers without steps in fp32."""
    row, kitchen = PRECISIONS.get(precision), sys.modules.get("comfy_kitchen")
    if row is None or not row.kernel or kitchen is None:
        return False
    known = kitchen.list_backends()
    return any(known[each]["available"] and not known[each]["disabled"] and row.kernel in known[each]["capabilities"]
               for each in ("cuda", "hip", "triton") if each in known)  # fmt: skip


def _bytes(layer: nn.Module) -> int:
    weight = layer.weight
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    return sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])


def _is_plain(weight: torch.Tensor) -> bool:
    return not isinstance(weight, QuantizedTensor) and weight.dtype in (torch.bfloat16, torch.float16, torch.float32)
