"""Memory as ComfyUI manages it: whether it ran out, how much may be used, and freeing it."""

from __future__ import annotations

import gc
import math
import platform
import sys
from dataclasses import replace

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...planning.work import PINNED_SHARE, Machine
from ..loading import deferred
from .heap import give_back

# Texts of RuntimeErrors that mean "out of memory" where torch has no exception of its own for it: from the CPU's
# allocator, and from libraries that find no room for their workspace (on ROCm hipBLAS and MIOpen).
NAMED = ("DefaultCPUAllocator: ", "BLAS_STATUS_ALLOC_FAILED", "BLAS_STATUS_NOT_INITIALIZED", "DNN_STATUS_ALLOC_FAILED",
         "miopenStatusAllocFailed")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the host, has no memory left."""
    known = getattr(comfy.model_management, "is_oom", None)  # 0.16.3 has none
    of_device = known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)
    named = isinstance(error, RuntimeError) and any(name in str(error) for name in NAMED)
    return isinstance(error, MemoryError) or of_device or named


def can_spill(device: torch.device) -> bool:
    """Whether a step may be slow because the driver has moved some of the device's memory to the host.

    Drivers of Windows, also under WSL, do that where others refuse the memory, and only if the device is full: with
    less free than the ``reserved`` bytes, which a plan leaves free.
    """
    return device.type == "cuda" and _drivers_spill() and torch.cuda.mem_get_info(device)[0] < reserved()


def _drivers_spill() -> bool:
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def reserved() -> float:
    """Bytes of a device that ComfyUI leaves free for other programs: 0.4 GB, more on Windows, or --reserve-vram."""
    return float(comfy.model_management.extra_reserved_memory())


def without_reserved(machine: Machine) -> Machine:
    """The machine without ComfyUI's reserved bytes, as far as bytes withheld by a limit do not already cover them."""
    return replace(machine, vram=min(machine.vram, machine.vram + machine.withheld - reserved()))


def pinnable(device: torch.device, chosen: float, free: float) -> float:
    """Bytes of streamed weights that can be pinned: ``chosen``, or if that is 0 a share of the ``free`` host memory.

    ComfyUI pins less on Windows, and nothing with --disable-pinned-memory. Infinite if pinning makes no copy faster.
    """
    if device.type != "cuda":
        return math.inf
    most = getattr(comfy.model_management, "MAX_PINNED_MEMORY", math.inf)
    return max(0.0, min(chosen or PINNED_SHARE * free, most))


def reset_watermarks() -> None:
    """Let dynamic VRAM load weights again that it keeps off the device since memory was short.

    ComfyUI does this after each node, but a whole run is one node.
    """
    paging = sys.modules.get("comfy_aimdo.model_vbar")  # older ComfyUI has none
    if paging is not None:
        paging.vbars_reset_watermark_limits()


def free() -> None:
    """Free unused memory: Python's reference cycles first, then the device's cache."""
    gc.collect()
    comfy.model_management.soft_empty_cache()


def load(patcher: ModelPatcher) -> None:
    """Load a model if its weights do not hold its own patches: they may hold those of another clone."""
    merged = patcher.model.current_weight_patches_uuid
    if merged == patcher.patches_uuid or (merged is None and not patcher.patches):
        return
    with torch.inference_mode():  # the mode that nodes load models in
        comfy.model_management.load_models_gpu([patcher])


def unload(patcher: ModelPatcher) -> None:
    """Free the memory that a model uses on its device and on the host."""
    loaded = comfy.model_management.current_loaded_models
    others = [entry for entry in loaded if entry.model is None or entry.model.model is not patcher.model]
    comfy.model_management.free_memory(1e30, patcher.load_device, others)  # 1e30: core's number for "all of it"
    deferred.drop(patcher.model)
    give_back()
    comfy.model_management.soft_empty_cache()
