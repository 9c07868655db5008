"""A text encoder whose layers' weights stay in host memory and come to the device just before they are used.

The ring and the exchange of weights are the transformer's (``streamed``), a group being one of the encoder's layers.
Words and norms stay on the device. ComfyUI's own loading takes what fits and casts the rest one Linear at a time; this
takes two layers' memory and fetches the next while one computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import comfy.model_management
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


def needed(clip, offload: str) -> bool:
    """Whether to stream a CLIP: always, never, or with ``auto`` where it does not fit its card."""
    patcher = clip.patcher
    if offload != AUTO:
        return offload == ALL
    if patcher.load_device.type != "cuda":
        return False
    card = comfy.model_management.get_total_memory(patcher.load_device)
    return patcher.model_size() > card - comfy.model_management.minimum_inference_memory()


@contextmanager
def streamed(clip, via: Direct | None = None) -> Iterator[tuple[object, Ring]]:
    """Yield a clone of a CLIP that streams its layers, and their ring; ``via`` as in ``StreamedWeights``.

    The CLIP is as before on every way out. Raises UserError if it has no layers that can be streamed.
    """
    own, patcher = clip.clone(), clip.patcher
    layers = {n: m for n, m in clip.cond_stage_model.named_modules() if hasattr(m, "in_features") and LAYER.match(n)}
    comfy.model_management.load_models_gpu([own.patcher], memory_required=patcher.model_size())
    own.load_model = lambda tokens=None: own.patcher  # or ComfyUI would load what was just left out
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


def _forward(layer: nn.Module, original, *args, **kwargs) -> Tensor:
    with arrived(layer):
        return original(*args, **kwargs)
