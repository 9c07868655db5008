"""What a step gives the device: copied while the processor goes on, where the device can do that."""

from __future__ import annotations

import torch
from torch import Tensor

PINNING = {"cuda"}  # kinds of devices that copy from pinned memory while the processor goes on


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor on the device, also if it was there. The processor waits neither for it nor for what runs.

    It goes through pinned memory, which torch uses again once the copy has been made. Where there is no more of that to
    be had, the processor waits.
    """
    if device.type not in PINNING or tensor.device.type != "cpu":
        return tensor.to(device, copy=True)
    try:
        return _pinned(tensor).to(device, non_blocking=True)
    except RuntimeError:  # the host's memory cannot be pinned: the copy may still be made
        return tensor.to(device, copy=True)


def _pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
