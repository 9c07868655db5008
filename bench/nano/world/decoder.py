"""Trains the overlapping decoder: clean pictures out of latents that have the errors of sampling.

The errors are noise and, once the transformer has learned something, its own: a clean latent is mixed with noise up to
some ``t`` and the transformer takes it back to 0 in a few steps, so that the clean picture is known.
"""

from __future__ import annotations

import random
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flux2_train.nano.overlap import OverlapAutoencoder

from .. import data, fit, flow
from . import scenes, words
from .train import TEXT_LENGTH, linear_autoencoder

BATCH = 6
RATE = 2e-3
NOISE = 0.35  # standard deviation of the strongest noise on latents, whose own is about 1
LATEST = 0.7  # largest t from which the transformer takes latents back
FREE_SHARE = 0.25  # pictures that are no scenes: shapes and scenes anywhere on the grid


def train_decoder(steps: int, work: Path, transformer: nn.Module | None = None, seed: int = 0) -> OverlapAutoencoder:
    """Fit the convolutions, write ``work``/vae.safetensors and return them.

    What ``work`` has of an earlier fit is where this one begins; the rate falls to zero at ``steps``.
    """
    model = OverlapAutoencoder()
    path = work / "vae.safetensors"
    model.load_state_dict(load_file(path) if path.exists() else linear_autoencoder(work).state_dict(), strict=False)
    refining = [p for name, p in model.named_parameters() if name.startswith("refine")]
    for parameter in refining:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(refining, lr=RATE, betas=(0.9, 0.98))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, (n + 1) / 20, 1.5 * (1 - n / steps)))
    noted, losses = time.monotonic(), []
    for step in range(steps):
        losses.append(_step(model, optimizer, random.Random(f"{seed}/{step}"), transformer))
        rate.step()
        if step % 50 == 49:
            print(step + 1, f"{np.mean(losses):.4f}", f"{(time.monotonic() - noted) / 50:.2f} s", flush=True)
            noted, losses = time.monotonic(), []
            _save(model, path)
    _save(model, path)
    return model.requires_grad_(False)


def _save(model: OverlapAutoencoder, path: Path) -> None:
    save_file(model.state_dict(), path, metadata={"format": "pt", "modelspec.title": "nano autoencoder"})


def _step(
    model: OverlapAutoencoder, optimizer: torch.optim.Optimizer, rng: random.Random, transformer: nn.Module | None
) -> float:
    """One update by the mean absolute error, which likes flat tones and sharp edges."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    pixels, latents = example(model, rng, generator, transformer)
    with torch.autocast("cpu", torch.bfloat16):
        painted = model.refined(model.rough(latents))
    loss = (painted.float() - pixels).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def example(
    model: OverlapAutoencoder, rng: random.Random, generator: torch.Generator, transformer: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """Clean pixels (B, 3, H, W) and latents (B, 128, H/16, W/16) of them with errors."""
    size = rng.choice(scenes.SIZES)
    specs = [scenes.random_spec(rng) for _ in range(BATCH)]
    pictures = [scenes.draw(spec, size) for spec in specs]
    if rng.random() < FREE_SHARE:
        pixels = data.to_pixels(_free_pictures(pictures, rng, size))
    else:
        pixels = data.to_pixels(pictures)
        if transformer is not None and rng.random() < 0.7:
            captions = [words.caption(spec) for spec in specs]
            return pixels, sampled(transformer, model.encode(pixels), captions, rng.uniform(0.05, LATEST), generator)
    return pixels, noisy(model.encode(pixels), generator)


def noisy(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Latents with noise of a strength of its own on each picture, none on a quarter of them."""
    strength = NOISE * (torch.rand(len(latents), 1, 1, 1, generator=generator) * 4 / 3 - 1 / 3).clamp(min=0)
    return latents + strength * torch.randn(latents.shape, generator=generator)


def sampled(
    transformer: nn.Module, latents: Tensor, captions: list[str], t: float, generator: torch.Generator, steps: int = 3
) -> Tensor:
    """Latents mixed with noise up to ``t`` and taken back by the transformer in ``steps`` Euler steps."""
    text = flow.full_text(captions, TEXT_LENGTH)
    x = (1 - t) * latents + t * torch.randn(latents.shape, generator=generator)
    times = torch.linspace(t, 0, steps + 1)
    for now, then in pairwise(times):
        with torch.autocast("cpu", torch.bfloat16):
            v = flow.velocity(transformer, x, now.expand(len(x)), text).float()
        x = x + (then - now) * v
    return x


def _free_pictures(pictures: list[np.ndarray], rng: random.Random, size: tuple[int, int]) -> list[np.ndarray]:
    """Scenes shifted off the grid, or free strokes, for what a user brings."""
    if rng.random() < 0.5:
        return [np.roll(p, (rng.randrange(16), rng.randrange(16)), (0, 1)) for p in pictures]
    return fit.strokes(len(pictures), rng.getrandbits(31))
