"""Trains nano's transformer. Seeded and resumable: kill it at any time and start it again with the same command."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flux2_train.nano import WEIGHTS

from . import data, flow
from .autoencoder import PatchAutoencoder
from .fit import VAE, fit_autoencoder, load_autoencoder
from .host import ROOT, as_in_module, new_transformer, published, training
from .initial import initialise
from .optimizer import Optimizer

DIT = WEIGHTS / "transformer.safetensors"
WORK = ROOT / ".cache" / "nano"
STEPS = 4100
MUON_RATE, ADAM_RATE = 2e-3, 1e-3
WARM_UP, COOL_DOWN = 50, 0.7  # steps; share of the run over which the rate falls to zero
EMA = 0.998
SAVE_EVERY = 180  # seconds
LOG_EVERY = 10  # steps
CLIP = 1.0


def train(steps: int = STEPS, seed: int = 0, work: Path = WORK, weights: Path | None = None) -> None:
    """Train up to `steps`, then write weights/.

    Without a checkpoint in `work` the run starts from `weights`, if given, with a new optimizer: how to go on from the
    committed weights. Give it another seed then, so that it sees other pictures.
    """
    if not VAE.exists():
        fit_autoencoder()
    autoencoder = load_autoencoder()
    model = new_transformer()
    initialise(model, seed)
    if weights is not None:
        model.load_state_dict(as_in_module(load_file(weights)))
    export(run(model, partial(one_step, seed=seed, autoencoder=autoencoder), steps, work))


def run(model: nn.Module, one_step: Callable[..., float], steps: int, work: Path) -> dict[str, torch.Tensor]:
    """Train up to ``steps`` from the checkpoint in ``work``, if there is one. Returns the averaged weights.

    ``one_step(model, optimizer, step, steps)`` makes an update and returns its loss.
    """
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = Optimizer(model, MUON_RATE, ADAM_RATE)
    step = resume(work, model, average, optimizer)
    saved = noted = time.monotonic()
    losses = []
    while step < steps:
        losses.append(one_step(model, optimizer, step, steps))
        step += 1
        update_average(average, model, step)
        now = time.monotonic()
        if len(losses) == LOG_EVERY:
            note(work, step, losses, now - noted)
            losses, noted = [], now
        if now - saved > SAVE_EVERY or step == steps:
            save(work, step, model, average, optimizer)
            saved = time.monotonic()
    return average


def one_step(
    model: nn.Module, optimizer: Optimizer, step: int, steps: int, seed: int, autoencoder: PatchAutoencoder
) -> float:
    """Forward, backward, update; returns the loss."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch = data.batch(seed, step, autoencoder)
    text = flow.short_text(batch.captions, generator)
    with training():
        loss = flow.loss(model, batch.latents, text, batch.reference, generator)
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step(step + 1, rate_factor(step, steps))
    return loss.item()


def rate_factor(step: int, steps: int) -> float:
    """Warm up, hold, then fall linearly to zero at `steps`."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (COOL_DOWN * steps))


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], model: nn.Module, step: int) -> None:
    """Exponential moving average, shorter while the run is young."""
    keep = min(EMA, (step + 1) / (step + 10))
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, 1 - keep)


def save(work: Path, step: int, model: nn.Module, average: dict, optimizer: Optimizer) -> None:
    """Write the whole state; the rename makes it all or nothing."""
    state = {"step": torch.tensor(step)}
    state |= {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    state |= {f"average.{n}": p for n, p in average.items()}
    state |= {f"state.{i}.{n}": t for n, ts in optimizer.state.items() for i, t in enumerate(ts)}
    save_file(state, work / "checkpoint.new")
    os.replace(work / "checkpoint.new", work / "checkpoint.safetensors")


@torch.no_grad()
def resume(work: Path, model: nn.Module, average: dict, optimizer: Optimizer) -> int:
    """Load the checkpoint in `work`, if there is one; returns the number of steps done."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    state = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.copy_(state[f"model.{name}"])
        average[name].copy_(state[f"average.{name}"])
        for i, tensor in enumerate(optimizer.state[name]):
            tensor.copy_(state[f"state.{i}.{name}"])
    return int(state["step"])


def export(average: dict[str, torch.Tensor]) -> None:
    """The averaged weights in bf16, as ComfyUI's diffusion model loader expects them."""
    weights = {n: t.to(torch.bfloat16).contiguous() for n, t in average.items()}
    save_file(published(weights), DIT, metadata={"format": "pt", "modelspec.title": "nano"})


def note(work: Path, step: int, losses: list[float], seconds: float) -> None:
    """Append `step mean-loss seconds-per-step` to work/log.txt."""
    with open(work / "log.txt", "a") as file:
        print(step, f"{sum(losses) / len(losses):.4f}", f"{seconds / len(losses):.2f}", file=file)
