"""What the machine has: free memory, and how fast it moves and multiplies, measured once."""

from __future__ import annotations

import time
from functools import lru_cache

import comfy.model_management
import psutil
import torch

from ..memory.estimate import Machine

COPIED = 1 << 28  # bytes
SIDE = 4096  # of the matrices that are multiplied
REPEATS = 3


def device() -> torch.device:
    """Where ComfyUI computes."""
    return comfy.model_management.get_torch_device()


def machine(device: torch.device, limit: float = 0.0) -> Machine:
    """Free memory of the device, with what ComfyUI would unload for us, and its rates.

    ``limit`` in bytes is the most that is taken for free, 0 for none.
    """
    vram = comfy.model_management.get_free_memory(device)
    if device.type == "cuda":
        there = comfy.model_management.current_loaded_models
        vram += sum(loaded.model_loaded_memory() for loaded in there if loaded.device == device)
    bus, flops = rates(device)
    taken = min(vram, limit) if limit else vram
    return Machine(taken, psutil.virtual_memory().available, bus, flops, vram - taken)


@lru_cache(maxsize=8)
def rates(device: torch.device) -> tuple[float, float]:
    """Bytes per second from host memory, and operations per second of matrix products in the dtype of computation."""
    on_gpu = device.type != "cpu"
    source = torch.empty(COPIED if on_gpu else COPIED >> 3, dtype=torch.uint8, pin_memory=device.type == "cuda")
    side, dtype = (SIDE, torch.bfloat16) if on_gpu else (SIDE // 8, torch.float32)
    target, matrix = torch.empty_like(source, device=device), torch.ones(side, side, dtype=dtype, device=device)
    copy = _seconds(device, lambda: target.copy_(source, non_blocking=True))
    return source.numel() / copy, 2 * side**3 / _seconds(device, lambda: matrix @ matrix)


def _seconds(device: torch.device, work) -> float:
    """The fastest of a few runs, after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
