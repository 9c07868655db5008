"""Starting ComfyUI's memory management as its main.py does, for when we use ComfyUI as a library.

Two things must happen before torch is imported: the environment names CUDA's allocator, and comfy-aimdo, which provides
dynamic VRAM, loads its library. A third must happen after ComfyUI is imported: MODELs get the patcher class that uses
comfy-aimdo. Without these steps ComfyUI works, but differs from what users run.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

from . import main_py

# Files that drivers (NVIDIA's, AMD's, WSL's) create on Linux. Other systems have no such files.
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/kfd", "/dev/dxg")
DYNAMIC_SINCE = (2, 8)  # torch
_why_off: list[str] = []


def may_have_card() -> bool:
    """Whether this computer may have a card of NVIDIA's or AMD's, without importing torch."""
    return not sys.platform.startswith("linux") or any(Path(path).exists() for path in DRIVERS)


def before_torch() -> None:
    """Do what main.py does between reading its command line and importing torch. The command line must have been read.

    Does nothing if there can be no card. If torch is already imported, its allocator stays as it is. Order and values
    are those of the main.py of ComfyUI 0.30.0 and 0.33.0; ``tests/host/system/test_starting.py`` compares both.
    """
    from comfy.cli_args import args

    if args.cpu or not may_have_card():
        return
    _load_aimdo(args)
    _name_devices(args)
    if "torch" not in sys.modules:
        core = importlib.import_module("cuda_malloc")  # writes PYTORCH_CUDA_ALLOC_CONF
        if "rocm" in core.get_torch_version_noimport():
            os.environ["OCL_SET_SVM_SIZE"] = main_py.svm_size()


def _load_aimdo(args: Namespace) -> None:
    import comfy.cli_args

    if not getattr(comfy.cli_args, "enables_dynamic_vram", lambda: False)():
        return
    try:
        import comfy_aimdo.control as control
    except ImportError:
        return
    reserved = getattr(args, "reserve_vram", None)
    headroom = {"simple_vram_headroom": None if reserved is None else int(reserved * 1024**3)}
    pressure = {"nvml_pressure": not getattr(args, "disable_nvml_pressure", False)}
    for arguments in ({**headroom, **pressure}, headroom, {}):  # as comfy-aimdo 0.4.11, 0.4.10 and 0.4.9 take them
        try:
            control.init(**arguments)
            return
        except TypeError:
            continue


def _name_devices(args: Namespace) -> None:
    if os.name == "nt":
        os.environ["MIMALLOC_PURGE_DELAY"] = "0"
        if _leaves_the_choice(args) and main_py.shows_one_card():
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    os.environ["TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"] = "1"
    every = args.cuda_device == "all"  # newer ComfyUI's word for the cards that are visible now
    if getattr(args, "default_device", None) is not None and not every:
        others = [number for number in range(32) if number != args.default_device]
        _visible(",".join(map(str, [args.default_device, *others])))
    if args.cuda_device is not None and not every:
        _visible(str(args.cuda_device))
        os.environ["ASCEND_RT_VISIBLE_DEVICES"] = str(args.cuda_device)
    if getattr(args, "oneapi_device_selector", None) is not None:
        os.environ["ONEAPI_DEVICE_SELECTOR"] = args.oneapi_device_selector
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _leaves_the_choice(args: Namespace) -> bool:
    """Whether nobody has chosen among the cards: neither the user nor ``accelerate launch``."""
    chosen = args.cuda_device, getattr(args, "default_device", None), os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen == (None, None, None) and int(os.environ.get("WORLD_SIZE", 1)) == 1


def _visible(devices: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = devices


def after_import() -> None:
    """Do what main.py does after importing ComfyUI's modules: turn on dynamic VRAM, if it is possible."""
    why = _why_not_tried() or _turn_on()
    _why_off[:] = [why] if why else []


def _why_not_tried() -> str:
    """Why main.py would not try dynamic VRAM here, empty if it would."""
    import comfy.cli_args
    import comfy.model_management as management

    args = comfy.cli_args.args
    forced = getattr(args, "enable_dynamic_vram", False)
    if args.cpu:
        return "there is no card"
    if not hasattr(comfy.cli_args, "enables_dynamic_vram"):
        return "this ComfyUI has none"
    if not comfy.cli_args.enables_dynamic_vram():
        return "ComfyUI's command line turns it off"
    if forced:
        return ""
    supported = main_py.supports_dynamic_vram()
    if supported is False:
        return "ComfyUI does not use it on this card"
    if supported is None and not management.is_nvidia():
        return "the card is not NVIDIA's"
    if supported is None and management.is_wsl():
        return "this is WSL"
    if management.torch_version_numeric < DYNAMIC_SINCE:
        return "torch is older than 2.8"
    return ""


def _turn_on() -> str:
    """Turn on dynamic VRAM. Returns why that did not work, empty if it did."""
    try:
        import comfy.memory_management as memory
        import comfy.model_patcher as patcher
        import comfy_aimdo.control as control
    except ImportError:
        return "comfy-aimdo is not installed"
    if not _devices_started(control):  # false too if its library was not loaded: ComfyUI's modules look for it once
        return "comfy-aimdo does not work with this card or driver"
    control.set_log_warning()
    patcher.CoreModelPatcher = patcher.ModelPatcherDynamic
    memory.aimdo_enabled = True
    return ""


def _devices_started(control: ModuleType) -> bool:
    import comfy.model_management as management
    from comfy.cli_args import args

    several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # each of accelerate's processes has its own card
    devices = [management.get_torch_device()] if several else management.get_all_torch_devices()
    headroom = int(getattr(args, "vram_headroom", 0) * 1024**3)
    try:
        return bool(control.init_devices((device.index or 0, headroom) for device in devices))
    except TypeError:  # comfy-aimdo 0.4.9
        return bool(control.init_devices(device.index or 0 for device in devices))


def dynamic_vram() -> tuple[bool, str]:
    """Whether ComfyUI's MODELs use dynamic VRAM, and if not, why."""
    try:
        import comfy.memory_management

        on = bool(getattr(comfy.memory_management, "aimdo_enabled", False))
    except ImportError:
        on = False
    return on, "" if on else (_why_off[0] if _why_off else _why_not_tried() or "ComfyUI did not turn it on")


def allocator() -> tuple[str, str]:
    """The name of CUDA's allocator in torch, and why it differs from main.py's choice; both may be empty."""
    import torch
    from comfy.cli_args import args

    if args.cpu or not torch.cuda.is_available():
        return "", ""
    name = torch.cuda.get_allocator_backend()
    wanted = "cudaMallocAsync" if getattr(args, "cuda_malloc", False) else name
    return name, "" if name == wanted else f"ComfyUI's own would be {wanted}: torch was imported too early"


def warnings() -> list[str]:
    """Warnings for the terminal: what ComfyUI's server would do differently on this card."""
    from comfy.cli_args import args

    if args.cpu or os.environ.get("RANK", "0") != "0":  # only one of accelerate's processes warns
        return []
    on, why = dynamic_vram()
    off = "" if on else f"dynamic VRAM is off: {why}"
    return [text for text in (off, allocator()[1]) if text]
