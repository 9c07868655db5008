"""How fast a device, its bus and the disk are: measured once per card and driver, saved in ComfyUI's user folder."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

from ...atomic import sweep, write_text
from ...planning.work import Machine
from ..loading.files import cache_folder

FILE, LARGEST, ENTRIES = "rates.json", 1 << 16, 32  # its name, its largest size in bytes, its largest number of cards
COPIED = 1 << 28  # bytes in one copy from host memory
SIDES = (128, 512, 1024, 2048, 4096)  # of the matrices: the first whose product takes LONG seconds, else the last
LONG, ROUND, ROUNDS = 2e-3, 0.05, 3  # seconds of a product, seconds of a round, number of rounds
READ, READ_SECONDS = 1 << 28, 1.0  # most bytes and seconds to read from the disk
BLOCK, NEW = 1 << 23, 1 << 26  # bytes per read; bytes of the file that is written if there is no model


@dataclass(frozen=True)
class Rates:
    """Bytes per second from pinned and from other host memory to the device, and operations per second.

    ``flops`` counts matrix products in the dtype that training computes in; ``products`` has this number by dtype.
    ``memory`` is bytes per second that the device reads and writes, ``disk`` those read from a file; 0 if unknown.
    ``measured`` is false for the planner's assumptions.
    """

    bus: float = Machine.bus
    bus_unpinned: float = Machine.bus_unpinned
    flops: float = Machine.flops
    products: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0
    disk: float = 0.0
    measured: bool = False

    def words(self, on: str = "card") -> str:
        """Where the planner's seconds come from, and the two rates behind them. ``on`` names what was measured."""
        where = f"measured on this {on}" if self.measured else "assumed"
        return f"{where}: {self.flops / 1e12:.3g} TFLOP/s, {self.bus / 1e9:.3g} GB/s from host memory"


ASSUMED = Rates()
_known: dict[str, Rates] = {}  # of this process; used even if the folder cannot be written


def rates(device: torch.device) -> Rates:
    """The rates of a device: saved ones, else measured in a few seconds; ASSUMED if measuring fails."""
    key = key_of(device)
    rates_here = _known.get(key) or kept(device)
    if rates_here is None:
        try:
            return measure_anew(device)
        except Exception as error:  # no memory left, or a driver's own error: a plan needs no measurement
            logging.warning("The rates of %s could not be measured (%s); the plan's are assumed.", device, error)
            return ASSUMED
    _known[key] = rates_here
    return rates_here


def measure_anew(device: torch.device) -> Rates:
    """Measure the rates now and save them instead of older ones. Raises the device's own error."""
    key, measured = key_of(device), measure(device)
    _keep(key, measured)
    _known[key] = measured
    return measured


def kept(device: torch.device) -> Rates | None:
    """The saved rates of this card with this driver and torch, if there are any; measures nothing."""
    return _known.get(key_of(device)) or _read().get(key_of(device))


def key_of(device: torch.device) -> str:
    """What the rates depend on: the card and its driver, or the processor and its threads, and torch."""
    if device.type == "cpu":
        parts = [platform.processor() or platform.machine(), f"{torch.get_num_threads()} threads"]
    else:
        parts = [name_of(device), driver()]
    return " | ".join(filter(None, [*parts, f"torch {torch.__version__}"]))


def name_of(device: torch.device) -> str:
    """The maker's name for the device."""
    module = getattr(torch, device.type, None)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def driver() -> str:
    """The version of NVIDIA's driver, or of AMD's on Linux; empty if neither is known."""
    for library in ("libnvidia-ml.so.1", "nvml.dll"):
        try:
            nvml, text = ctypes.CDLL(library), ctypes.create_string_buffer(96)
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, 96) == 0:
                return f"driver {text.value.decode(errors='replace')}"
        except (OSError, AttributeError):
            continue
    amd = Path("/sys/module/amdgpu/version")
    return f"amdgpu {amd.read_text(encoding='ascii').strip()}" if amd.is_file() else ""


@torch.inference_mode(False)
@torch.no_grad()
def measure(device: torch.device) -> Rates:
    """Measure everything. Raises the device's own error if it lacks the memory."""
    products = dict(_products(device))
    pinned = device.type == "cuda"
    slow = _copy(device, False)
    dtype = dtype_of_training(device)
    memory = _memory(device)
    comfy.model_management.soft_empty_cache()
    reading = disk() if device.type != "cpu" else 0.0  # with a CPU, computing is slower than the disk
    return Rates(_copy(device, True) if pinned else slow, slow, products[dtype], products, memory, reading, True)


def dtype_of_training(device: torch.device) -> str:
    """The name of ``compute.training_dtype`` for a model whose dtype ComfyUI chooses."""
    if device.type == "cpu":
        return "fp32"
    return "bf16" if comfy.model_management.should_use_bf16(device) else "fp16"


def _products(device: torch.device) -> Iterator[tuple[str, float]]:
    """Operations per second of matrix products, by dtype. The matrices are random: zeros would take less power."""
    dtype = dtype_of_training(device)
    yield dtype, _rate_of(device, _plain, dtype)
    if device.type == "cpu":
        return
    others = [name for name in ("bf16", "fp16") if name != dtype]
    for name, make in {**{n: _plain for n in others}, "fp8": _fp8, "int8": _int8}.items():
        try:
            yield name, _rate_of(device, make, name)
        except (RuntimeError, AttributeError, NotImplementedError, ValueError):
            continue  # the device or this torch does not have this product


def _rate_of(device: torch.device, make: Callable[..., Callable[[], object]], name: str) -> float:
    """Operations per second of a product. Its matrices are as large as a clock needs: some devices have slow fp8."""
    side = next((s for s in SIDES if _once(device, make(device, name, s)) > LONG), SIDES[-1])
    return 2 * side**3 / _seconds(device, make(device, name, side))


def _matrix(device: torch.device, side: int) -> torch.Tensor:
    return torch.randn(side, side).to(device)  # drawn on the CPU, because not every device has a generator


def _plain(device: torch.device, name: str, side: int) -> Callable[[], object]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    a, b = _matrix(device, side).to(dtype), _matrix(device, side).to(dtype)
    return lambda: a @ b


def _fp8(device: torch.device, name: str, side: int) -> Callable[[], object]:
    a, b = (_matrix(device, side).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _int8(device: torch.device, name: str, side: int) -> Callable[[], object]:
    a, b = ((_matrix(device, side) * 40).clamp(-127, 127).to(torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b.t())


def _copy(device: torch.device, pinned: bool) -> float:
    """Bytes per second from host memory."""
    size = COPIED if device.type == "cuda" else COPIED >> 3
    source = torch.ones(size, dtype=torch.uint8)
    if pinned:
        source = source.pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / _seconds(device, lambda: target.copy_(source, non_blocking=pinned))


def _memory(device: torch.device) -> float:
    """Bytes per second that the device reads and writes, measured by copying more than its cache holds."""
    size = 2 * COPIED if device.type == "cuda" else COPIED >> 3
    source = torch.ones(size, dtype=torch.uint8).to(device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(device, lambda: target.copy_(source))


def disk() -> float:
    """Bytes per second from the models' disk; 0 if the system cannot bypass its cache."""
    if not hasattr(os, "posix_fadvise"):
        return 0.0
    try:
        path = _largest_model()
        return _read_rate(path) if path else _read_rate_of_new_file()
    except OSError:
        return 0.0


def _largest_model() -> Path | None:
    paths = [Path(entry.path) for folder in folder_paths.get_folder_paths("diffusion_models") if os.path.isdir(folder)
             for entry in os.scandir(folder) if entry.is_file() and entry.stat().st_size >= READ]  # fmt: skip
    return max(paths, key=lambda path: path.stat().st_size, default=None)


def _read_rate(path: Path) -> float:
    done, started = 0, time.perf_counter()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, READ, os.POSIX_FADV_DONTNEED)
        while done < READ and time.perf_counter() - started < READ_SECONDS:
            part = len(file.read(BLOCK))
            if not part:
                break
            done += part
    return done / (time.perf_counter() - started)


def _read_rate_of_new_file() -> float:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(NEW // BLOCK):
            file.write(os.urandom(BLOCK))
        file.flush()
        os.fsync(file.fileno())
        return _read_rate(Path(file.name))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    module = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(module, "synchronize"):
        module.synchronize() if device.type == "mps" else module.synchronize(device)


def _once(device: torch.device, work: Callable[[], object]) -> float:
    work()
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds per run of ``work``: the fastest of ROUNDS rounds, each with as many runs as fill ROUND seconds."""
    round_seconds = ROUND if device.type == "cuda" else ROUND / 5
    count = max(1, min(1000, int(round_seconds / max(_once(device, work), 1e-6))))
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(count):
            work()
        synchronize(device)
        times.append((time.perf_counter() - started) / count)
    return min(times)


def _read() -> dict[str, Rates]:
    """The saved rates by key, without damaged entries."""
    path = cache_folder() / FILE
    try:
        if path.stat().st_size > LARGEST:
            return {}
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): saved for key, entry in entries.items() if (saved := _entry(entry))}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _entry(entry: object) -> Rates | None:
    try:
        products = {str(name): _number(value) for name, value in entry["products"].items()}
        numbers = {name: _number(entry[name]) for name in ("bus", "bus_unpinned", "flops")}
        return replace(Rates(**numbers), products=products, memory=_number(entry["memory"]),
                       disk=_number(entry["disk"], 0.0), measured=True)  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _number(value: object, least: float = 1.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ValueError(value)
    return float(value)


def _keep(key: str, measured: Rates) -> None:
    """Save the rates; the oldest entries go if there are more than ENTRIES."""
    entries = {**dict(list(_read().items())[1 - ENTRIES :]), key: measured}
    text = json.dumps({name: {k: v for k, v in asdict(e).items() if k != "measured"} for name, e in entries.items()},
                      indent=1)  # fmt: skip
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        sweep(cache_folder())
        write_text(cache_folder() / FILE, text + "\n")
    except OSError as error:
        logging.warning("The rates of this card could not be kept: %s", error)
