"""What kind of model a file holds, from its header alone: whether it can be a flavour's transformer, encoder or VAE."""

from __future__ import annotations

from pathlib import Path

from ... import safetensors_header
from ...errors import UserError
from ...flavours import Flavour, by_sizes
from ...planning.weights import of_files
from . import shards, stored_formats

EMBEDDING = "embed_tokens.weight"  # (words, width) in every text encoder of FLUX.2
STATISTICS = "bn.running_mean"  # FLUX.2's autoencoder normalises its latents, no other known one does
LAYERS = 3  # hidden states that FLUX.2 reads side by side: context = 3 * width


def wrong_transformer(path: Path, row: Flavour) -> str:
    """Why a file is no transformer of that flavour that this ComfyUI can read, empty if it is one."""
    try:
        weights = of_files(shards.parts_of(path))
        stored_formats.require_known(shards.parts_of(path))
    except (UserError, OSError) as error:
        return str(error)
    if (weights.hidden, weights.double, weights.single) == row.sizes[:3]:
        return ""
    other = by_sizes((weights.hidden, weights.double, weights.single, weights.context))
    return f"{path.name} is {other.name if other else 'another FLUX.2'}, not {row.name}."


def wrong_text_encoder(path: Path, row: Flavour) -> str:
    """Why a file is no text encoder of that flavour that this ComfyUI can read, empty if it is one."""
    try:
        entries = [safetensors_header.read(part).tensors for part in shards.parts_of(path)]
        stored_formats.require_known(shards.parts_of(path))
    except (UserError, OSError) as error:
        return str(error)
    widths = [entry.shape[-1] for each in entries for name, entry in each.items() if name.endswith(EMBEDDING)]
    if not widths:
        return f"{path.name} is no text encoder of FLUX.2."
    if LAYERS * widths[0] != row.context:
        return f"{path.name} is a text encoder {widths[0]} wide; {row.name} needs one {row.context // LAYERS} wide."
    return ""


def wrong_vae(path: Path, row: Flavour) -> str:
    """Why a file is no VAE of that flavour, empty if it is one or the flavour has a VAE of its own kind."""
    if row.vae_module is not None:
        return ""
    try:
        tensors = safetensors_header.read(path).tensors
    except (UserError, OSError) as error:
        return str(error)
    if STATISTICS in tensors:
        return ""
    return f"{path.name} is no FLUX.2 VAE; one of SDXL, SD3 or FLUX.1 does not fit."
