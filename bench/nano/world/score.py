"""What nano paints of the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from flux2_train.nano.overlap import OverlapAutoencoder

from .. import data, flow
from ..host import as_in_module, new_transformer
from .train import TEXT_LENGTH, linear_autoencoder

CHUNK = 10  # pictures sampled at once


def checkpointed(work: Path) -> nn.Module:
    """The averaged weights of the checkpoint in ``work``, rounded as they are shipped."""
    state = load_file(work / "checkpoint.safetensors")
    weights = {n.removeprefix("average."): t for n, t in state.items() if n.startswith("average.")}
    model = new_transformer()
    model.load_state_dict(as_in_module({n: t.to(torch.bfloat16).float() for n, t in weights.items()}))
    return model.requires_grad_(False)


def autoencoder_of(work: Path) -> OverlapAutoencoder:
    """The autoencoder in ``work``; its convolutions change nothing before they are trained."""
    model, path = OverlapAutoencoder(), work / "vae.safetensors"
    model.load_state_dict(load_file(path) if path.exists() else linear_autoencoder(work).state_dict(), strict=False)
    return model


def paint(
    model: nn.Module,
    autoencoder: OverlapAutoencoder,
    captions: list[str],
    size: tuple[int, int],
    seed: int = 0,
    reference: torch.Tensor | None = None,
    **sampling,
) -> list[np.ndarray]:
    """Pictures (H, W, 3) for captions, with the text padded to 64 tokens."""
    out = []
    for start in range(0, len(captions), CHUNK):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)  # so that parts may be painted apart
        part = captions[start : start + CHUNK]
        noise = torch.randn(len(part), 128, size[1] // 16, size[0] // 16, generator=generator)
        texts = [flow.full_text(c, TEXT_LENGTH) for c in (part, [""] * len(part))]
        known = None if reference is None else reference[start : start + CHUNK]
        with torch.autocast("cpu", torch.bfloat16):
            latents = flow.sample(model, noise, *texts, reference=known, **sampling)
        out += data.to_pictures(autoencoder.decode(latents.float()))
    return out
