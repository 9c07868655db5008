"""LoRA files on disk: adapters exported for a target program, written atomically, under names not yet taken."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..atomic import apart, move, sweep, write_text
from ..bounded import reason
from ..errors import UserError
from . import dora, peft_config, plain, write
from .parts import Part


@dataclass(frozen=True)
class Exported:
    """What goes into a LoRA file: its parts (converted to plain LoRA if wanted), tensors, error and metadata."""

    parts: dict[str, Part]
    tensors: dict[str, Tensor]
    format: str
    error: float = 0.0
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """A clause for people, empty where nothing was lost."""
        return f", as plain LoRA with an error of {self.error:.2%}" if self.error else ""


def export(
    parts: dict[str, Part],
    format: str = "comfyui",
    precision: str = "bf16",
    plain_rank: int = 0,
    weights: dora.Weights | None = None,
    device: torch.device | str = "cpu",
) -> Exported:
    """Parts for a file in ``format`` (write.FORMATS) and ``precision`` (write.DTYPES).

    ``plain_rank`` above 0 converts every part that is no plain LoRA of at most that rank to the nearest one, on
    ``device``. ``weights`` gives the base's weights, which only DoRA needs. Raises UserError naming what the format
    cannot carry exactly.
    """
    error = 0.0
    if plain_rank:
        parts, error = plain.as_plain(parts, plain_rank, weights, device)
    write.require_carried(parts, format)
    if any(map(dora.is_dora, parts.values())):
        parts = dora.with_norm(parts, weights, write.divides_by_base(format))
    metadata = {"flux2_train.format": format, "flux2_train.precision": precision}
    config = write.diffusers_config(parts, format)
    if config:
        metadata[peft_config.HEADER] = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    if plain_rank:
        metadata["flux2_train.plain_lora_error"] = f"{error:.6f}"
    return Exported(parts, write.tensors(parts, format, write.DTYPES[precision]), format, error, metadata)


def save(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> Path:
    """Write a LoRA file atomically; every metadata value is a string."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with apart(path) as folder:
            save_file(weights, folder / path.name, metadata={"format": "pt", **metadata})
            move(folder / path.name, path, durable=True)
    except (OSError, SafetensorError) as error:  # a full disk raises either
        raise UserError(
            f"{path.name} could not be written to {path.parent} ({reason(error)}): make room there, or make it a "
            "folder that can be written."
        ) from error
    return path


def save_as(exported: Exported, path: Path, metadata: dict[str, str]) -> Path:
    """Write the exported LoRA to ``path``, which is a folder for peft; returns the path of the file of tensors."""
    if exported.format != "peft":
        return save(exported.tensors, path, {**metadata, **exported.metadata})
    path.mkdir(parents=True, exist_ok=True)
    config = json.dumps(write.peft_config(exported.parts), indent=2)
    write_text(path / peft_config.BESIDE, config + "\n")
    return save(exported.tensors, path / peft_config.FILE, {**metadata, **exported.metadata})


def remove(path: Path) -> None:
    """Remove the file of tensors that ``save_as`` returned, and for peft its folder, if nothing else lies there."""
    path.unlink(missing_ok=True)
    if path.name == peft_config.FILE:
        (path.parent / peft_config.BESIDE).unlink(missing_ok=True)
        path.parent.rmdir()


def path_of(folder: Path, name: str, format: str = "comfyui") -> Path:
    """``name.safetensors`` in ``folder``; ``name`` for peft, whose format is a folder."""
    return folder / (name if format == "peft" else f"{name}.safetensors")


def free_path(folder: Path, name: str, format: str = "comfyui") -> Path:
    """``path_of`` that name, or of ``name_2``, ``name_3`` ... if it is taken, so that nothing is overwritten."""
    return next(path for path in paths_of(folder, name, format) if not os.path.lexists(path))


def paths_of(folder: Path, name: str, format: str = "comfyui") -> Iterator[Path]:
    """``path_of`` that name, of ``name_2``, ``name_3`` and so on."""
    yield path_of(folder, name, format)
    for number in itertools.count(2):
        yield path_of(folder, f"{name}_{number}", format)


def place(draft: Path, folder: Path, name: str, format: str = "comfyui") -> Path:
    """Give a LoRA that was written apart the first free name in ``folder``. A file that appears meanwhile stays."""
    for path in paths_of(folder, name, format):
        if not os.path.lexists(path):
            with contextlib.suppress(FileExistsError):
                move(draft, path, durable=True, new=True)
                return path
