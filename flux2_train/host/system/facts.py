"""What this computer has, and which of its features training can use: for ``doctor`` and benches. Measures nothing."""

from __future__ import annotations

import getpass
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

from ... import __version__
from ...errors import UserError
from .bootstrap import find_comfyui

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "comfy-kitchen", "comfy-aimdo",
            "diffusers", "triton", "xformers", "sageattention", "bitsandbytes")  # fmt: skip
OURS = ("peft", "accelerate", "matplotlib")
TOKENS = re.compile(r"\b(hf|ghp|gho|github_pat|sk|wandb|key)[_-][A-Za-z0-9_-]{8,}|\b[0-9a-f]{40}\b")


def version_of(package: str) -> str:
    """The installed version of a package, empty if it is not installed. The package is not imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Versions of this project, ComfyUI, Python and the packages that matter; empty for those not installed."""
    return {
        "flux2_train": __version__,
        "comfyui": comfyui_version(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def comfyui_version() -> str:
    """ComfyUI's version, read from its file without importing it; empty if there is no ComfyUI."""
    try:
        text = (find_comfyui() / "comfyui_version.py").read_text(encoding="utf-8")
    except (UserError, OSError):
        return ""
    match = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    return match[1] if match else ""


def missing_packages() -> list[str]:
    """Packages that ComfyUI's essential requirements or ours name and that are not installed."""
    try:
        text = (find_comfyui() / "requirements.txt").read_text(encoding="utf-8")
    except (UserError, OSError):
        text = ""
    required = re.findall(r"^([A-Za-z0-9_.-]+)", text.partition("#non essential")[0], re.MULTILINE)
    return [name for name in dict.fromkeys([*required, *OURS]) if not version_of(name)]


def system() -> dict[str, object]:
    """The computer: system, processor, cores, and bytes of memory."""
    import psutil

    memory = psutil.virtual_memory()
    release = platform.release()
    return {
        "system": f"{platform.system()} {platform.machine()}{' under WSL' if 'microsoft' in release.lower() else ''}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": memory.total,
        "memory_free": memory.available,
    }


def processor() -> str:
    """The processor's name. On Linux it is read from /proc/cpuinfo, because Python does not know it there."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def card() -> dict[str, object]:
    """The device that ComfyUI computes on; ComfyUI must have been imported. ``type`` is 'cpu' if there is no other."""
    import comfy.model_management as management
    import torch

    from . import rates
    from .starting import allocator, dynamic_vram

    device = management.get_torch_device()
    facts = {"type": device.type, "device": str(device), "computes_in": rates.dtype_of_training(device)}
    if device.type == "cpu":
        return facts
    on, why = dynamic_vram()
    facts |= {
        "name": rates.name_of(device), "driver": rates.driver(), "cuda": torch.version.cuda or "",
        "hip": getattr(torch.version, "hip", None) or "", "memory": management.get_total_memory(device),
        "memory_free": management.get_free_memory(device), "dynamic_vram": on, "why_no_dynamic_vram": why,
        "allocator": allocator()[0], "why_other_allocator": allocator()[1],
    }  # fmt: skip
    if device.type == "cuda":
        facts |= {"capability": "sm_{}{}".format(*torch.cuda.get_device_capability(device)),
                  "cards": torch.cuda.device_count()}  # fmt: skip
    return facts


def formats() -> dict[str, str]:
    """Load FLUX.2's precisions, each with the reason why it cannot be used here; empty for those that work."""
    import torch

    from ...formats import DTYPES, FORMATS, PRECISIONS
    from ..loading import quantise

    usable = quantise.available()
    problems = dict.fromkeys(DTYPES, "")
    for name, format in FORMATS.items():
        problem = f"this ComfyUI has none, {PRECISIONS[name].comfyui or 'a newer one'} has"
        if format.dtype and not hasattr(torch, format.dtype):
            problem = f"this torch has no {format.dtype}, {PRECISIONS[name].torch} has"
        problems[name] = "" if name in usable else problem
    return problems


def kernels() -> str:
    """``yes`` if comfy-kitchen's CUDA kernels run here, else ``no`` and why."""
    if not version_of("comfy-kitchen") and importlib.util.find_spec("comfy_kitchen") is None:
        return "no: comfy-kitchen is not installed"
    import comfy_kitchen

    backend = comfy_kitchen.list_backends().get("cuda", {})
    if backend.get("available") and not backend.get("disabled"):
        return "yes"
    return f"no: {backend.get('unavailable_reason') or 'ComfyUI wants torch with CUDA 13 for them'}"


def flavour_files() -> dict[str, list[str]]:
    """For each flavour except nano, the parts for which ComfyUI has no file."""
    from ...flavours import FLAVOURS
    from ..loading.files import find

    def lacking(row) -> list[str]:
        parts = {"transformer": row.transformer_files("auto"), "text encoder": row.text_encoders, "VAE": row.vaes}
        return [part for part, files in parts.items() if not any(find(file) for file in files)]

    return {row.name: lacking(row) for row in FLAVOURS.values() if row.name != "nano"}


def scrubbed(text: str) -> str:
    """Text that can be shown to others: without this user's name, home folder, and whatever looks like a token."""
    for path, instead in ((str(find_home()), "~"), (sys.prefix, "PYTHON")):
        if len(path) > 1:
            text = text.replace(path, instead)
    text = TOKENS.sub("(left out)", text)
    user = user_name()
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\\s]|$)", "USER", text) if user else text


def find_home() -> Path:
    """The home folder, even if the environment does not name it."""
    return Path(os.path.expanduser("~"))


def user_name() -> str:
    """The name of the user who is logged in, empty if the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
