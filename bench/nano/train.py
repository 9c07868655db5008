"""Trains nano's transformer. Seeded and resumable: kill it at any time and start it again with the same command.

Text is padded to 64 tokens, all of which are attended to, as ComfyUI gives them to the model. The model's matrix
products run in bf16 where the processor is fast at it. Weights and optimizer, whose Newton-Schulz iteration would not
converge in bf16, are fp32.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flux2_train.nano.autoencoder import PatchAutoencoder

from . import data, flow
from .fit import fit_linear
from .host import ROOT, as_in_module, half_products, new_transformer, published, training
from .initial import initialise
from .optimizer import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

WORK = ROOT / ".cache" / "nano"
LINEAR = "linear.safetensors"
STEPS = 8000
MUON_RATE, ADAM_RATE = 2e-3, 1e-3
WARM_UP, COOL_DOWN = 50, 0.7  # steps; share of the run over which the rate falls to zero
EMA = 0.998
SAVE_EVERY = 180  # seconds
LOG_EVERY = 10  # steps
CLIP = 1.0


def train(steps: int = STEPS, seed: int = 0, work: Path = WORK, weights: Path | None = None) -> None:
    """Train up to ``steps``; save the checkpoint, the log, the autoencoder and the final weights in ``work``.

    Only the learning rate depends on ``steps``: it begins to fall after three tenths of them. Without a checkpoint, a
    run begins with ``weights``, if given, with the autoencoder beside them, and with a new optimizer; another seed then
    shows it other pictures.
    """
    work.mkdir(parents=True, exist_ok=True)
    if weights is not None and not (work / LINEAR).exists():
        save_file(linear_of(weights.parent).state_dict(), work / LINEAR)
    autoencoder = linear_autoencoder(work)
    model = new_transformer()
    initialise(model, seed)
    if weights is not None:
        model.load_state_dict(as_in_module(load_file(weights)))
    average = run(model, partial(one_step, seed=seed, autoencoder=autoencoder), steps, work)
    write_transformer(average, work)


def run(model: nn.Module, one_step: Callable[..., float], steps: int, work: Path) -> dict[str, Tensor]:
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
    text = flow.text(batch.captions)
    with training(), half_products():
        loss = flow.loss(model, batch.latents, text, batch.reference, generator)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step(step + 1, rate_factor(step, steps))
    return loss.item()


def trained(work: Path) -> dict[str, Tensor]:
    """The averaged weights in ``work`` by the names of ComfyUI's module: its checkpoint's, else those written last."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return as_in_module(load_file(work / "transformer.safetensors"))
    return {n.removeprefix("average."): t for n, t in load_file(path).items() if n.startswith("average.")}


def write_transformer(average: dict[str, Tensor], folder: Path) -> None:
    """``folder``/transformer.safetensors: averaged weights in bf16, by the names of FLUX.2's published files."""
    weights = published({n: t.to(torch.bfloat16).contiguous() for n, t in average.items()})
    save_file(weights, folder / "transformer.safetensors", metadata={"format": "pt", "modelspec.title": "nano"})


def linear_autoencoder(work: Path) -> PatchAutoencoder:
    """The autoencoder's linear part, fitted once and kept in ``work``."""
    if not (work / LINEAR).exists():
        save_file(fit_linear().state_dict(), work / LINEAR)
    autoencoder = PatchAutoencoder()
    autoencoder.load_state_dict(load_file(work / LINEAR))
    return autoencoder


def linear_of(folder: Path) -> PatchAutoencoder:
    """The linear part of ``folder``/vae.safetensors."""
    autoencoder = PatchAutoencoder()
    autoencoder.load_state_dict(load_file(folder / "vae.safetensors"), strict=False)
    return autoencoder


def rate_factor(step: int, steps: int) -> float:
    """Warm up, hold, then fall linearly to zero at `steps`."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (COOL_DOWN * steps))


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int) -> None:
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


def note(work: Path, step: int, losses: list[float], seconds: float) -> None:
    """Append `step mean-loss seconds-per-step` to work/log.txt."""
    with open(work / "log.txt", "a") as file:
        print(step, f"{sum(losses) / len(losses):.4f}", f"{seconds / len(losses):.2f}", file=file)
