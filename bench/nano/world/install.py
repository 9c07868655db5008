"""Writes the files that the pack ships: the averaged transformer in bf16, the autoencoder with convolutions in fp16."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flux2_train.nano import WEIGHTS

from ..host import published


def install(work: Path, folder: Path = WEIGHTS) -> None:
    """transformer.safetensors from the checkpoint in ``work``, and vae.safetensors from the one there."""
    state = load_file(work / "checkpoint.safetensors")
    averaged = {n.removeprefix("average."): t for n, t in state.items() if n.startswith("average.")}
    transformer = published({n: t.to(torch.bfloat16).contiguous() for n, t in averaged.items()})
    save_file(transformer, folder / "transformer.safetensors", metadata={"format": "pt", "modelspec.title": "nano"})
    vae = {n: t.half() if n.startswith("refine") else t for n, t in load_file(work / "vae.safetensors").items()}
    title = {"format": "pt", "modelspec.title": "nano autoencoder"}
    save_file(vae, folder / "vae.safetensors", metadata=title)
