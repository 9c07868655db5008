"""LoRA files. Written as ``diffusion_model.<name>.lora_A/lora_B.weight`` with alpha folded in.

That form, and no ``.alpha`` keys, is the one that ComfyUI, diffusers and ai-toolkit all load unconverted at the
same strength: diffusers raises on ``.alpha``, ComfyUI never reads an alpha from the metadata.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from .live import Adapters

PREFIX = "diffusion_model."


def state_dict(adapters: Adapters, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The adapters as ComfyUI's LORA_MODEL: A (rank, in), B (out, rank) with alpha / rank folded into B."""
    weights = {}
    for name, part in adapters.parts().items():
        weights[f"{PREFIX}{name}.lora_A.weight"] = part.down.to(dtype).contiguous()
        weights[f"{PREFIX}{name}.lora_B.weight"] = (part.up * part.scale).to(dtype).contiguous()
    return weights


def save(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> Path:
    """Write a LoRA file whole or not at all; every metadata value is a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(weights, partial, metadata={"format": "pt", **metadata})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA file. Raises UserError for anything but safetensors: pickles run code when loaded."""
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is not a safetensors file; only safetensors LoRAs are loaded.")
    return load_file(path)


def free_path(folder: Path, name: str) -> Path:
    """``name.safetensors`` in ``folder``, or ``name_2``, ``name_3`` ... where that is taken: nothing is overwritten."""
    path, number = folder / f"{name}.safetensors", 2
    while path.exists():
        path, number = folder / f"{name}_{number}.safetensors", number + 1
    return path
