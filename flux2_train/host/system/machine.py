"""What this computer has: free memory, and how fast it copies and multiplies."""

from __future__ import annotations

import comfy.model_management
import psutil
import torch

from ...planning.work import Machine
from .rates import rates


def device() -> torch.device:
    """The device that ComfyUI computes on."""
    return comfy.model_management.get_torch_device()


def machine(device: torch.device, limit: float = 0.0) -> Machine:
    """Free memory of the device, including what ComfyUI would unload for us, and its rates.

    ``limit`` is the most bytes of the device to count as free, 0 for no limit.
    """
    measured = rates(device)
    vram = free_memory(device)
    usable = min(vram, limit) if limit else vram
    ram = psutil.virtual_memory().available
    return Machine(usable, ram, measured.bus, measured.flops, vram - usable, bus_unpinned=measured.bus_unpinned,
                   disk=measured.disk)  # fmt: skip


def free_memory(device: torch.device) -> int:
    """Free bytes of a device, including what ComfyUI would unload from it for us."""
    _wake(device)
    vram = comfy.model_management.get_free_memory(device)
    if device.type == "cuda":
        models = comfy.model_management.current_loaded_models
        vram += sum(loaded.model_loaded_memory() for loaded in models if loaded.device == device)
    return vram


def rates_in_words(device: torch.device) -> str:
    """Where the seconds of a plan come from: measured here, or assumed."""
    return rates(device).words("processor" if device.type == "cpu" else "card")


def _wake(device: torch.device) -> None:
    """Make cuBLAS allocate its workspace, some 10 to 100 MB, before free memory is measured."""
    if device.type != "cuda":
        return
    one = torch.ones(16, 16, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        one.to(dtype) @ one.to(dtype)
    torch.cuda.synchronize(device)
