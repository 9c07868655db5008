"""Memory as ComfyUI sees it: whether it ran out, and giving it back."""

from __future__ import annotations

import gc

import comfy.model_management
import torch

from . import deferred
from .heap import give_back

OF_CPU = "DefaultCPUAllocator: "  # torch names it when it has no memory, and has no exception of its own for that


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the host, has no memory left."""
    known = getattr(comfy.model_management, "is_oom", None)  # 0.16.3 has none
    of_device = known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)
    return isinstance(error, MemoryError) or of_device or (isinstance(error, RuntimeError) and OF_CPU in str(error))


def can_spill(device: torch.device) -> bool:
    """Whether what does not fit may be moved to host memory by the driver, which then makes every step slow."""
    return device.type == "cuda"


def free() -> None:
    """Give back what nobody holds any more: Python's cycles first, then the device's cache."""
    gc.collect()
    comfy.model_management.soft_empty_cache()


def unload(patcher) -> None:
    """Free the memory a model takes, on its device and on the host, so that the next one finds it empty."""
    loaded = comfy.model_management.current_loaded_models
    others = [entry for entry in loaded if entry.model is None or entry.model.model is not patcher.model]
    comfy.model_management.free_memory(1e30, patcher.load_device, others)  # 1e30: core's word for all of it
    deferred.drop(patcher.model)
    give_back()
    comfy.model_management.soft_empty_cache()
