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

from . import data, flow
from .host import half_products
from .optimizer import orthogonalise
from .strokes import strokes
from .train import linear_autoencoder
from .world import scenes, words
from .world.brush import paint
from .world.scenery import draw_scenery
from .world.scenes import Object, Spec

BATCH = 6
RATE, MOMENTUM = 8e-3, 0.95
NOISE = 0.35  # standard deviation of the strongest noise on latents, whose own is about 1
LATEST = 0.7  # largest t from which the transformer takes latents back
FREE_SHARE = 0.5  # pictures that are no scenes of the world: any colours, any place, free strokes


def train_decoder(
    steps: int, work: Path, transformer: nn.Module | None = None, seed: int = 0, rate: float = RATE
) -> OverlapAutoencoder:
    """Fit the convolutions, write ``work``/vae.safetensors and return them.

    What ``work`` has of an earlier fit is where this one begins; the rate falls to zero at ``steps``.
    """
    model = OverlapAutoencoder()
    path = work / "vae.safetensors"
    begin(model, seed)
    model.load_state_dict(load_file(path) if path.exists() else linear_autoencoder(work).state_dict(), strict=False)
    refining = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith("refine")]
    momentum = [torch.zeros_like(p) for p in refining]
    noted, losses = time.monotonic(), []
    for step in range(steps):
        losses.append(_loss(model, random.Random(f"{seed}/{steps}/{step}"), transformer))
        update(refining, momentum, rate * min(1, (step + 1) / 20, 1.5 * (1 - step / steps)))
        if step % 50 == 49:
            print(step + 1, f"{np.mean(losses):.4f}", f"{(time.monotonic() - noted) / 50:.2f} s", flush=True)
            noted, losses = time.monotonic(), []
            _save(model, path)
    _save(model, path)
    return model.requires_grad_(False)


@torch.no_grad()
def begin(model: OverlapAutoencoder, seed: int) -> None:
    """Weights of the convolutions that keep the size of what goes through (He et al. 2015); the last one stays zero."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.startswith(("refine_see", "refine_tell", "refine_in", "refine_blocks")):
            nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
            parameter.mul_(0.3 if ".conv2." in name else 1)


@torch.no_grad()
def update(parameters: list[Tensor], momentum: list[Tensor], rate: float) -> None:
    """Muon for the kernels, as in ``optimizer``; sign descent for the few biases."""
    for parameter, mean in zip(parameters, momentum, strict=True):
        mean.mul_(MOMENTUM).add_(parameter.grad)
        ahead = parameter.grad + MOMENTUM * mean
        if parameter.ndim > 1:
            flat = ahead.flatten(1)
            change = 0.2 * max(flat.shape) ** 0.5 * orthogonalise(flat).view_as(parameter)
        else:
            change = 0.1 * ahead.sign()
        parameter -= rate * change
        parameter.grad = None


def _save(model: OverlapAutoencoder, path: Path) -> None:
    save_file(model.state_dict(), path, metadata={"format": "pt", "modelspec.title": "nano autoencoder"})


def _loss(model: OverlapAutoencoder, rng: random.Random, transformer: nn.Module | None) -> float:
    """Gradients of the error, which it returns: the mean absolute one, and the root of the mean squared one.

    The first likes flat tones and sharp edges. The second is what the reconstruction is measured by.
    """
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    pixels, latents = example(model, rng, generator, transformer)
    with half_products():
        painted = model.refined(latents)
    error = painted.float() - pixels
    loss = error.abs().mean() + error.square().mean().sqrt()
    loss.backward()
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
        pixels = data.to_pixels(_free_pictures(specs, rng, size))
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
    text = flow.text(captions)
    x = (1 - t) * latents + t * torch.randn(latents.shape, generator=generator)
    times = torch.linspace(t, 0, steps + 1)
    for now, then in pairwise(times):
        with half_products():
            v = flow.velocity(transformer, x, now.expand(len(x)), text).float()
        x = x + (then - now) * v
    return x


def _free_pictures(specs: list[Spec], rng: random.Random, size: tuple[int, int]) -> list[np.ndarray]:
    """For what a user brings: free strokes, or scenes of any colours, half of them off the grid."""
    if rng.random() < 0.3:
        return strokes(len(specs), rng.getrandbits(31))
    pictures = [recoloured(spec, size, rng) for spec in specs]
    if rng.random() < 0.5:
        return pictures
    return [np.roll(p, (rng.randrange(16), rng.randrange(16)), (0, 1)) for p in pictures]


def recoloured(spec: Spec, size: tuple[int, int], rng: random.Random) -> np.ndarray:
    """(H, W, 3): the scene, with each part of its objects in a colour of its own."""
    picture = draw_scenery(*size, spec.sky, spec.ground).copy()

    def sprite(thing: Object) -> np.ndarray:
        covers = scenes.covers_of(thing)
        colours = {role: tuple(rng.randrange(256) for _ in range(3)) for role in covers}
        return paint(covers, colours.__getitem__)

    scenes.lay_objects(picture, spec, size, sprite)
    return picture
