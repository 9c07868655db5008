"""Memory of the process that measures, or of torch on its GPU; a processor's is read where Linux shows it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

RESET = "/proc/self/clear_refs"


def in_use(device: str | torch.device) -> int:
    """Bytes in use now."""
    return _status("VmRSS") if _is_cpu(device) else torch.cuda.memory_allocated()


def peak(device: str | torch.device) -> int:
    """The most bytes in use since ``reset_peak``."""
    return _status("VmHWM") if _is_cpu(device) else torch.cuda.max_memory_allocated()


def reset_peak(device: str | torch.device) -> None:
    """Reset the recorded peak to the memory in use now, if the system can do that."""
    if not _is_cpu(device):
        torch.cuda.reset_peak_memory_stats()
    elif os.path.exists(RESET):
        Path(RESET).write_text("5")


def _is_cpu(device: str | torch.device) -> bool:
    return torch.device(device).type == "cpu"


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024
