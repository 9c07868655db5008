"""Trains nano's transformer on the world. Seeded and resumable: kill it at any time and start the same command again.

Text is padded to 64 tokens, all of which are attended to, as ComfyUI gives them to the model. The model's matrix
products run in bf16; weights and optimizer, whose Newton-Schulz iteration would not converge in bf16, are fp32.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flux2_train.nano.autoencoder import PatchAutoencoder

from .. import flow
from ..host import ROOT, as_in_module, new_transformer, published, training
from ..initial import initialise
from ..optimizer import Optimizer
from ..train import CLIP, rate_factor, run
from . import data
from .fit import fit_linear

WORK = ROOT / ".cache" / "nano_world"
TEXT_LENGTH = 64
STEPS = 8000


def train(steps: int = STEPS, seed: int = 0, work: Path = WORK, weights: Path | None = None) -> None:
    """Train up to ``steps``; the checkpoint, the log, the autoencoder and at last the weights lie in ``work``.

    Only the learning rate depends on ``steps``: it begins to fall after three tenths of them. Without a checkpoint, a
    run begins with ``weights``, if given, and a new optimizer; another seed then shows it other pictures.
    """
    work.mkdir(parents=True, exist_ok=True)
    autoencoder = linear_autoencoder(work)
    model = new_transformer()
    initialise(model, seed)
    if weights is not None:
        model.load_state_dict(as_in_module(load_file(weights)))
    average = run(model, partial(one_step, seed=seed, autoencoder=autoencoder), steps, work)
    weights = {n: t.to(torch.bfloat16).contiguous() for n, t in average.items()}
    meta = {"format": "pt", "modelspec.title": "nano"}
    save_file(published(weights), work / "transformer.safetensors", metadata=meta)


def trained(work: Path) -> dict[str, torch.Tensor]:
    """The averaged weights in ``work`` by the names of ComfyUI's module: its checkpoint's, else those written last."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return as_in_module(load_file(work / "transformer.safetensors"))
    return {n.removeprefix("average."): t for n, t in load_file(path).items() if n.startswith("average.")}


def linear_autoencoder(work: Path) -> PatchAutoencoder:
    """The autoencoder's linear part, fitted once and kept in ``work``."""
    path = work / "linear.safetensors"
    if not path.exists():
        save_file(fit_linear().state_dict(), path)
    autoencoder = PatchAutoencoder()
    autoencoder.load_state_dict(load_file(path))
    return autoencoder


def one_step(
    model: nn.Module, optimizer: Optimizer, step: int, steps: int, seed: int, autoencoder: PatchAutoencoder
) -> float:
    """Forward, backward, update; returns the loss."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch = data.batch(seed, step, autoencoder)
    text = flow.full_text(batch.captions, TEXT_LENGTH)
    with training(), torch.autocast("cpu", torch.bfloat16):
        loss = flow.loss(model, batch.latents, text, batch.reference, generator)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step(step + 1, rate_factor(step, steps))
    return loss.item()
