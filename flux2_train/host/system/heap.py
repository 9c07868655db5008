"""When training on a CPU, freed activations go back to the system at once.

glibc keeps freed blocks of memory for reuse, up to a size that grows to 32 MB. torch asks for aligned blocks, and
autograd's many small objects stay between those of one step, so the gaps hardly ever fit a later request (glibc's bug
14581): the process grows by what every block of the model has used. With 1.1 GB of weights it grew by 1.0 GB while
0.17 GB were in use. Here blocks above a lower, fixed size are mapped one by one instead, and unmapped when freed.

Fresh pages cost time: in a virtual machine, where a page fault takes 2.5 microseconds, steps took 1.3 times as long. So
nothing is changed while a small model trains, which cannot grow by much.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 20  # bytes; most blocks that stay between steps, such as gradients of adapters, are smaller
GLIBCS_LARGEST = 32 << 20  # bytes; glibc's own threshold, after blocks of this size have been freed
WORTH_IT = 10**9  # bytes of weights, from which on memory matters more than speed
_open: list[int] = []  # thresholds of the active freed_at_once contexts, which may nest: a model may be read inside one


@contextmanager
def freed_at_once(device: torch.device, weights: int = WORTH_IT, large: int = LARGE) -> Iterator[None]:
    """A context in which blocks of at least ``large`` bytes of CPU memory go back to the system when they are freed.

    It does nothing for other devices, nor for less than ``WORTH_IT`` bytes of ``weights``. Contexts may nest.
    """
    glibc = _glibc() if device.type == "cpu" and weights >= WORTH_IT else None
    if glibc is None:
        yield
        return
    # Setting one threshold stops glibc from adapting either; by itself it keeps the trim threshold at twice the other.
    glibc.mallopt(M_TRIM_THRESHOLD, 2 * GLIBCS_LARGEST)
    glibc.mallopt(M_MMAP_THRESHOLD, large)
    _open.append(large)
    try:
        yield
    finally:
        _open.pop()
        glibc.mallopt(M_MMAP_THRESHOLD, _open[-1] if _open else GLIBCS_LARGEST)


def give_back() -> None:
    """Give every free page of glibc's heap back to the system, also pages between blocks that are in use."""
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
