"""A text encoder whose layers' weights stay in host memory and are copied to the device just before they are used.

The ring of buffers and the exchange of weights are the transformer's (``borrowed.streamed``); each group is one layer
of the encoder. Embeddings and norms stay on the device. ComfyUI's own loading would keep on the device what fits there
and copy the other Linears one at a time; this needs the memory of two layers, and copies the next while one computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.model_management
from comfy.sd import CLIP
from torch import Tensor, nn

from ...errors import UserError
from ...planning.layout import Layout
from ...settings.memory import ALL, AUTO
from ...streaming.ring import Direct, Ring
from ..borrowed.borrow import Borrowed
from ..borrowed.streamed import StreamedWeights, arrived, can_stream
from ..loading import deferred
from ..system.memory import unload

LAYER = re.compile(r"(.*\.layers\.\d+)\.")


def needed(clip: CLIP, offload: str) -> bool:
    """Whether to stream a CLIP: with ``all``, and with ``auto`` if it does not fit its card."""
    patcher = clip.patcher
    if offload != AUTO:
        return offload == ALL
    if patcher.load_device.type != "cuda":
        return False
    card = comfy.model_management.get_total_memory(patcher.load_device)
    return patcher.model_size() > card - comfy.model_management.minimum_inference_memory()


@contextmanager
def streamed(clip: CLIP, via: Direct | None = None) -> Iterator[tuple[CLIP, Ring]]:
    """Yield a clone of a CLIP that streams its layers, and their ring; ``via`` as in ``StreamedWeights``.

    The CLIP is restored on every way out. Raises UserError if none of its layers can be streamed.
    """
    own, patcher = clip.clone(), clip.patcher
    layers = {n: m for n, m in clip.cond_stage_model.named_modules() if hasattr(m, "in_features") and LAYER.match(n)}
    comfy.model_management.load_models_gpu([own.patcher], memory_required=patcher.model_size())
    own.load_model = lambda tokens=None: own.patcher  # else ComfyUI would load the streamed layers too
    portions: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if can_stream(layer) and "forward" not in layer.__dict__:
            portions.setdefault(LAYER.match(name)[1], []).append(name)
    if not portions:
        raise UserError("This CLIP has no layers that can be streamed; set offload of Cache Embeds to 'off'.")
    weights = StreamedWeights(patcher.load_device, Borrowed(Layout(), via), deferred.mapped(patcher))
    try:
        weights.stream(layers, list(portions.values()))
        for layer in weights.layers.values():
            layer.forward = partial(_forward, layer, layer.forward)
        yield own, weights.ring
    finally:
        for layer in weights.layers.values():
            layer.__dict__.pop("forward", None)
        weights.end()
        if weights.stranded:
            unload(patcher)


def _forward(layer: nn.Module, original: Callable, *args, **kwargs) -> Tensor:
    with arrived(layer):
        return original(*args, **kwargs)
