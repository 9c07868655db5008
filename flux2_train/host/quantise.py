"""Storing a model's large matrices in fewer bits, in the quantised layouts that ComfyUI itself reads from files.

One tensor at a time comes out of the memory-mapped file, so the host never holds more than the result and that tensor.
What is sensitive (embedders, modulation, norms, final layer) stays as in the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.quant_ops
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors import safe_open
from torch import Tensor

from ..adapters import stream
from ..errors import UserError

# The Linears inside the blocks of a FLUX.2 transformer, and inside the layers of its text encoders.
MATRICES = re.compile(
    r"(.*\.)?((double|single)_blocks\.\d+\.((img|txt)_(attn\.(qkv|proj)|mlp\.[02])|linear[12])"
    r"|layers\.\d+\.(self_attn|mlp)\.\w+_proj)\.weight"
)
ROTATIONS = (256, 64, 16)  # widths of Hadamard rotation that ComfyUI's kernels have


@dataclass(frozen=True)
class Format:
    """One of ComfyUI's formats: its name in files, what its layout's quantiser is told, what divides its rows."""

    name: str
    options: dict[str, object] = field(default_factory=dict)
    rotated: bool = False
    multiple: int = 1


FORMATS: dict[str, Format] = {
    "fp8 (scaled)": Format("float8_e4m3fn", {"scale": "recalculate"}),
    "mxfp8": Format("mxfp8", multiple=32),
    "int8": Format("int8_tensorwise", {"is_weight": True, "per_channel": True}),
    "nvfp4": Format("nvfp4", multiple=16),
    "int4": Format("convrot_w4a4", rotated=True, multiple=64),
}


def available() -> list[str]:
    """The names in FORMATS that the running ComfyUI can read."""
    return [name for name, format in FORMATS.items() if format.name in comfy.quant_ops.QUANT_ALGOS]


def quantised(layer: str, weight: Tensor, precision: str) -> dict[str, Tensor]:
    """A Linear's weight (out, in) as the tensors of a file, by key, on the CPU. Computed where ``weight`` is."""
    format = FORMATS[precision]
    options, notes = dict(format.options), {"format": format.name}
    if format.rotated:
        options["convrot_groupsize"] = notes["convrot_groupsize"] = _rotation(weight.shape[1])
    layout = comfy.quant_ops.QUANT_ALGOS[format.name]["comfy_tensor_layout"]
    tensors = QuantizedTensor.from_float(weight.float(), layout, **options).state_dict(f"{layer}.weight")
    tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)
    return {key: tensor.cpu() for key, tensor in tensors.items()}


def _rotation(width: int) -> int:
    return next(size for size in ROTATIONS if width % size == 0)


def stored(path: Path, precision: str, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model file with its matrices quantised, one after the other; arithmetic on ``device``.

    Raises UserError if the format is unknown to the running ComfyUI or does not fit the model's sizes.
    """
    if precision not in available():
        raise UserError(
            f"This ComfyUI cannot read {precision}; it has {', '.join(available())}. Update it or choose one."
        )
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no dict
            tensor = file.get_tensor(key)
            if tensor.ndim == 2 and MATRICES.fullmatch(key):
                _require_divisible(key, tensor, precision)
                yield from quantised(key.removesuffix(".weight"), tensor.to(device), precision).items()
            else:
                yield key, tensor


def _require_divisible(key: str, tensor: Tensor, precision: str) -> None:
    multiple = FORMATS[precision].multiple
    if tensor.shape[1] % multiple:
        raise UserError(f"{precision} needs rows of a multiple of {multiple} values; {key} has {tensor.shape[1]}.")


def device_for(via: str) -> torch.device:
    """Where quantising is computed: ``auto`` is ComfyUI's device. Raises UserError for a GPU that is not there."""
    device = torch.device("cpu") if via == "cpu" else comfy.model_management.get_torch_device()
    if via == "gpu" and device.type == "cpu":
        raise UserError("Quantising on the GPU was asked for, but ComfyUI runs on the CPU; choose 'auto' or 'cpu'.")
    return device


def kept(path: Path, precision: str, via: str, folder: Path) -> Path:
    """The quantised copy of a model file in ``folder``, made on first use; any ComfyUI loader reads it.

    Its name holds a key of the source's content (header, size and time of change) and of the precision, so a changed
    source gets a new copy. It is written tensor by tensor, and is there whole or not at all.
    """
    target = folder / f"{path.stem}-{re.sub(r'[^a-z0-9]', '', precision)}-{_key(path, precision)}.safetensors"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
        scales = ("weight_scale", "weight_scale_2", "comfy_quant")
        names += [n.replace("weight", scale) for n in names if MATRICES.fullmatch(n) for scale in scales]
        stream.write(target, stored(path, precision, device_for(via)), names, metadata)
    return target


def _key(path: Path, precision: str) -> str:
    with path.open("rb") as file:
        header = file.read(min(8 + int.from_bytes(file.read(8), "little"), 1 << 27))
    found = path.stat()
    text = f"{precision} {FORMATS[precision]} {found.st_size} {found.st_mtime_ns}".encode()
    return hashlib.sha256(text + header).hexdigest()[:12]
