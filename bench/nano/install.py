"""Writes the files that the pack ships: the averaged transformer in bf16, the autoencoder with convolutions in fp16."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from flux2_train.nano import WEIGHTS

from .train import trained, write_transformer


def install(work: Path, folder: Path = WEIGHTS) -> None:
    """transformer.safetensors from what is trained in ``work``, and vae.safetensors from the one there."""
    write_transformer(trained(work), folder)
    vae = {n: t.half() if n.startswith("refine") else t for n, t in load_file(work / "vae.safetensors").items()}
    title = {"format": "pt", "modelspec.title": "nano autoencoder"}
    save_file(vae, folder / "vae.safetensors", metadata=title)
