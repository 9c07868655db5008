"""The dtype in which a model computes while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


def training_dtype(model: ModelPatcher) -> torch.dtype:
    """ComfyUI's own choice for the MODEL, but bf16 instead of fp16 where the device has it.

    The smallest fp16 number is 6e-8. The loss is a mean over some 100,000 numbers, so most gradients of a FLUX.2 are
    smaller than that. bf16 has the exponent range of fp32.
    """
    chosen = model.model.get_dtype_inference()
    if chosen == torch.float16 and comfy.model_management.should_use_bf16(model.load_device):
        return torch.bfloat16
    return chosen


@contextmanager
def in_training_dtype(model: ModelPatcher) -> Iterator[None]:
    """A context in which the MODEL computes in ``training_dtype`` if ComfyUI's training flag is on.

    Without the flag its layers run as ComfyUI's own, in the dtype that they were built for.
    """
    core = model.model
    before = core.manual_cast_dtype
    if comfy.model_management.in_training:
        core.manual_cast_dtype = training_dtype(model)
    try:
        yield
    finally:
        core.manual_cast_dtype = before
