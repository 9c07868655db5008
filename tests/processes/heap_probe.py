"""Prints how many blocks lie on their own for a tensor of 16 MB made inside ``freed_at_once``, and for one after it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from flux2_train.host.system.bootstrap import import_comfyui  # noqa: E402

import_comfyui()

import torch  # noqa: E402
from glibc import malloc_info  # noqa: E402

from flux2_train.host.system.heap import freed_at_once, give_back  # noqa: E402

CPU = torch.device("cpu")


def made() -> int:
    """Blocks of their own that one more tensor of 16 MB takes."""
    give_back()  # or the end of the heap might have room for it
    before = malloc_info().hblks
    tensor = torch.empty(16 << 20, dtype=torch.uint8)
    found = malloc_info().hblks - before
    del tensor
    return found


with freed_at_once(CPU):
    with freed_at_once(CPU):
        pass
    print(made())
print(made())
