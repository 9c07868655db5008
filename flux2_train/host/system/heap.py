"""Freed activations go back to the system at once where the CPU trains.

glibc keeps freed blocks for what comes next, up to a size that grows to 32 MB. torch asks for aligned blocks, and
between those of one step autograd's many small nodes live on: the places left over hardly ever fit again (glibc's bug
14581), and the process grows by what every block of the model has used. With 1.1 GB of weights it grew by 1.0 GB while
0.17 GB were in use. Blocks above a lower, fixed size are mapped one by one instead, and unmapped when they are freed.

Fresh pages have their price: where a page fault takes 2.5 microseconds, in a virtual machine, steps took 1.3 times as
long. So while a small model trains, which cannot grow by much, glibc keeps what it keeps.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 20  # bytes; what is kept between steps, such as gradients of adapters, is mostly smaller
GLIBCS_LARGEST = 32 << 20  # where its own threshold ends up once blocks of this size have been freed
WORTH_IT = 10**9  # bytes of weights; growing by as much again is where memory matters more than speed
_open: list[int] = []  # thresholds of freed_at_once, which may lie in each other: a model is read where it is needed


@contextmanager
def freed_at_once(device: torch.device, weights: int = WORTH_IT, large: int = LARGE) -> Iterator[None]:
    """Inside, blocks of a CPU's memory from ``large`` bytes on are given back when they are freed.

    This does nothing on other devices, nor for less than ``WORTH_IT`` bytes of ``weights``.
    """
    glibc = _glibc() if device.type == "cpu" and weights >= WORTH_IT else None
    if glibc is None:
        yield
        return
    # Setting one threshold stops glibc from moving either; it keeps the second at twice the first.
    glibc.mallopt(M_TRIM_THRESHOLD, 2 * GLIBCS_LARGEST)
    glibc.mallopt(M_MMAP_THRESHOLD, large)
    _open.append(large)
    try:
        yield
    finally:
        _open.pop()
        glibc.mallopt(M_MMAP_THRESHOLD, _open[-1] if _open else GLIBCS_LARGEST)


def give_back() -> None:
    """Give every free page of glibc's heap back to the system, also those between blocks that are in use."""
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
