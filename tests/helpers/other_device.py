"""A device that is not the CPU, for machines without a GPU: what mixes its tensors with the CPU's fails on it too.

ComfyUI takes it for an Ascend NPU, one of the devices that it knows by a name which torch leaves free. FLUX2_CARDS in
the environment says how many there are (1); their tensors do not mix with each other's.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

SOURCE = Path(__file__).with_suffix(".cpp")
CACHE = SOURCE.parents[2] / ".cache" / "other_device"
TORCH = (2, 11)  # older ones have other interfaces
MEMORY = 8 << 30  # bytes that it claims to have


def require_buildable() -> None:
    """Skip the test where the device cannot be built."""
    if not shutil.which("g++"):
        pytest.skip("the device is built with g++, which is not here (on Debian: apt install g++)")
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        pytest.skip(f"the device is built on the headers of torch {'.'.join(map(str, TORCH))}")


@contextmanager
def installed() -> Iterator[None]:
    """Make torch know the device, and ComfyUI, if that is imported inside."""
    torch.utils.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", _module())
    torch.ops.load_library(_built())
    torch.version.cuda = None  # ComfyUI asks it whose the device is
    sys.modules["torch_npu"] = ModuleType("torch_npu")  # ComfyUI looks whether this can be imported
    try:
        yield
    finally:
        del sys.modules["torch_npu"]  # transformers would look for its kernels


def _built() -> Path:
    """The device as a library, compiled once for each version of its source and of torch, and kept below .cache."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        own, partial = Path(torch.__file__).parent, CACHE / f"{key}.{os.getpid()}.partial"
        options = ["-std=c++20", "-O0", "-shared", "-fPIC", "-isystem", own / "include"]
        subprocess.run(["g++", *options, SOURCE, "-L", own / "lib", "-ltorch_cpu", "-lc10", "-o", partial], check=True)
        os.replace(partial, library)
    return library


@contextmanager
def waits() -> Iterator[list[tuple[str, int, str]]]:
    """A list that grows inside by (what, bytes, file and line) wherever the processor would wait for a GPU.

    These are copies that are not ``non_blocking``, in either direction, and operations whose result it has to know.
    """
    found: list[tuple[str, int, str]] = []

    def told(what: bytes, size: int) -> None:
        found.append((what.decode(), size, _caller()))

    kept = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64)(told)
    library = ctypes.CDLL(str(_built()))
    library.flux2_tell_waits(kept)
    try:
        yield found
    finally:
        library.flux2_tell_waits(None)


def _caller() -> str:
    """Where in this project or ComfyUI the present call comes from."""
    frames = [frame for frame in traceback.extract_stack() if "site-packages" not in frame.filename]
    return next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames) if f.filename != __file__), "")


def _module() -> ModuleType:
    """What torch and ComfyUI look for as ``torch.npu``."""
    module = ModuleType("torch.npu")
    module._initialized = False  # no generator of its own: random numbers are the CPU's
    module._is_in_bad_fork = lambda: False
    module.is_available = lambda: True
    module.device_count = lambda: int(os.environ.get("FLUX2_CARDS", "1"))
    module.current_device = lambda: 0
    module.get_device_name = lambda device: "a device for tests"
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module.memory_stats = lambda device: dict.fromkeys(("active_bytes.all.current", "reserved_bytes.all.current"), 0)
    module.mem_get_info = lambda device: (MEMORY, MEMORY)
    module.empty_cache = module.synchronize = lambda *_: None
    return module
