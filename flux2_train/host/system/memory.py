"""Memory as ComfyUI sees it: whether it ran out, and giving it back."""

from __future__ import annotations

import gc
import math
import platform
import sys
from dataclasses import replace

import comfy.model_management
import torch

from ...planning.estimate import PINNED_SHARE, Machine
from ..loading import deferred
from .heap import give_back

# What torch names in a RuntimeError when there is no memory and it has no exception of its own for that: the CPU's
# allocator, and libraries that find no room for their workspace (on ROCm hipBLAS and MIOpen).
NAMED = ("DefaultCPUAllocator: ", "BLAS_STATUS_ALLOC_FAILED", "BLAS_STATUS_NOT_INITIALIZED", "DNN_STATUS_ALLOC_FAILED",
         "miopenStatusAllocFailed")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the host, has no memory left."""
    known = getattr(comfy.model_management, "is_oom", None)  # 0.16.3 has none
    of_device = known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)
    named = isinstance(error, RuntimeError) and any(name in str(error) for name in NAMED)
    return isinstance(error, MemoryError) or of_device or named


def can_spill(device: torch.device) -> bool:
    """Whether a step may be slow now because the driver has moved memory of the device to the host's.

    Windows' drivers do that where others refuse the memory, under WSL too, and only on a full device: with less free
    than the ``reserved`` bytes, which a plan leaves free.
    """
    return device.type == "cuda" and _drivers_spill() and torch.cuda.mem_get_info(device)[0] < reserved()


def _drivers_spill() -> bool:
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def reserved() -> float:
    """Bytes of a device that ComfyUI leaves free for other programs: 0.4 GB, more on Windows, or --reserve-vram."""
    return float(comfy.model_management.extra_reserved_memory())


def without_reserved(machine: Machine) -> Machine:
    """What there is, without the bytes that ComfyUI leaves free and does not count with what is left to others."""
    return replace(machine, vram=min(machine.vram, machine.vram + machine.withheld - reserved()))


def pinnable(device: torch.device, asked: float, free: float) -> float:
    """Bytes of streamed weights that can be pinned: as many as are ``asked`` for, or a share of what is ``free``.

    ComfyUI pins less on Windows, and nothing with --disable-pinned-memory. Infinite where no copy is faster for it.
    """
    if device.type != "cuda":
        return math.inf
    most = getattr(comfy.model_management, "MAX_PINNED_MEMORY", math.inf)
    return max(0.0, min(asked or PINNED_SHARE * free, most))


def reset_watermarks() -> None:
    """Let dynamic VRAM put weights on the device again that it keeps off since they were squeezed out.

    ComfyUI does that after each node, and a run is one node.
    """
    paging = sys.modules.get("comfy_aimdo.model_vbar")  # older ComfyUI has none
    if paging is not None:
        paging.vbars_reset_watermark_limits()


def free() -> None:
    """Give back what nobody holds any more: Python's cycles first, then the device's cache."""
    gc.collect()
    comfy.model_management.soft_empty_cache()


def load(patcher) -> None:
    """Load a model, so that its weights hold its own patches, unless they do; those of a clone may lie in them."""
    merged = patcher.model.current_weight_patches_uuid
    if merged == patcher.patches_uuid or (merged is None and not patcher.patches):
        return
    with torch.inference_mode():  # the mode that nodes load models in
        comfy.model_management.load_models_gpu([patcher])


def unload(patcher) -> None:
    """Free the memory a model takes, on its device and on the host, so that the next one finds it empty."""
    loaded = comfy.model_management.current_loaded_models
    others = [entry for entry in loaded if entry.model is None or entry.model.model is not patcher.model]
    comfy.model_management.free_memory(1e30, patcher.load_device, others)  # 1e30: core's word for all of it
    deferred.drop(patcher.model)
    give_back()
    comfy.model_management.soft_empty_cache()
