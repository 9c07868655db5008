"""What the machine has: free memory, and how fast it moves and multiplies."""

from __future__ import annotations

import comfy.model_management
import psutil
import torch

from ...planning.estimate import Machine
from .rates import rates


def device() -> torch.device:
    """Where ComfyUI computes."""
    return comfy.model_management.get_torch_device()


def machine(device: torch.device, limit: float = 0.0) -> Machine:
    """Free memory of the device, with what ComfyUI would unload for us, and its rates.

    ``limit`` in bytes is the most that is taken for free, 0 for none.
    """
    found = rates(device)
    _wake(device)
    vram = comfy.model_management.get_free_memory(device)
    if device.type == "cuda":
        there = comfy.model_management.current_loaded_models
        vram += sum(loaded.model_loaded_memory() for loaded in there if loaded.device == device)
    taken = min(vram, limit) if limit else vram
    ram = psutil.virtual_memory().available
    return Machine(taken, ram, found.bus, found.flops, vram - taken, bus_unpinned=found.bus_unpinned)


def rates_in_words(device: torch.device) -> str:
    """Where the seconds of a plan come from: measured here, or assumed."""
    return rates(device).words("processor" if device.type == "cpu" else "card")


def _wake(device: torch.device) -> None:
    """Have cuBLAS take its workspace, some 10 to 100 MB, before anybody asks how much memory is free."""
    if device.type != "cuda":
        return
    one = torch.ones(16, 16, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        one.to(dtype) @ one.to(dtype)
    torch.cuda.synchronize(device)
