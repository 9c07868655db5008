"""What glibc says of the memory of this process."""

import ctypes

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class MallocInfo(ctypes.Structure):
    """``struct mallinfo2``: ``hblks`` blocks lie on their own, not on the heap, and have ``hblkhd`` bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def known() -> bool:
    """Whether it can be asked: only glibc, from 2.33 on."""
    return hasattr(ctypes.CDLL(None), "mallinfo2")


def malloc_info() -> MallocInfo:
    """How it is now."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = MallocInfo
    return ask()
