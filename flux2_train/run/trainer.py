"""One step, one loop. The trainer never prints: it yields events."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..adapters import read, targets
from ..adapters.live import Adapters, Site
from ..adapters.start import start_from
from ..config import TrainConfig
from ..data.cache import EmbedCache, LatentCache, Sample, samples
from ..data.order import batches, step_count
from ..errors import UserError
from ..flow.target import differential_target, interpolate, mean_squared_error, velocity_target
from ..flow.timesteps import linear_mu, logit_normal, shift
from ..host import identify, lora
from ..host.borrow import borrow, linears, training_mode
from ..host.frozen import row_norms
from ..host.velocity import Condition, check_embeds, velocity
from . import processes
from .events import Event, Phase, Stepped, Validated, Warned
from .validation import fixed_loss

SMOOTHING = 0.95


@dataclass
class History:
    """What a run has measured so far."""

    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    preservation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    def add(self, loss: float, preservation: float, seconds: float) -> None:
        """Append one step; the running mean starts unbiased, as a plain mean of the first steps."""
        weight = max(1 - SMOOTHING, 1 / (len(self.losses) + 1))
        last = self.smoothed[-1] if self.smoothed else loss
        self.losses.append(loss)
        self.smoothed.append(last + weight * (loss - last))
        self.preservation.append(preservation)
        self.seconds.append(seconds)


class Trainer:
    """Trains LoRA adapters on a FLUX.2 MODEL from cached latents and embeds.

    Everything that can be wrong with the inputs is refused here, before the first step. ``run`` does the work;
    ``adapters`` and ``history`` are there at any time, also after it was stopped.

    With the ``accelerator`` of several processes they take each step together: all hold the same adapters, draw the
    same randomness, compute their share of the samples and add the gradients up. ``is_main`` is true in the one that
    tells events and writes files.
    """

    def __init__(
        self,
        model,
        embeds: EmbedCache,
        latents: LatentCache,
        config: TrainConfig,
        accelerator: Accelerator | None = None,
    ):
        identify.require_flux2(model)
        self.accelerator = accelerator or processes.alone()
        self.is_main = self.accelerator.process_index == 0
        self.model, self.config = model, config
        self.samples = samples(embeds, latents)
        self.dataset, self.text_encoder, self.vae = latents.dataset, embeds.made_by, latents.made_by
        self.repeats = latents.dataset.repeats
        check_embeds(model, self.samples[0].embeds)
        if config.preservation and not latents.dataset.class_word:
            raise UserError("Preservation is on but Dataset Folder has no class word; fill it in (for example 'dog').")
        if config.preservation and not latents.dataset.trigger:
            raise UserError(
                "Preservation is on but Dataset Folder has no trigger word; fill it in (for example 'ohwx')."
            )
        self.device = model.load_device
        self.step_size = config.batch * config.accumulate * self.accelerator.num_processes
        self.total = step_count(self.samples, self.step_size, self.repeats, config.steps, config.epochs)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.history = History()
        with training_mode():
            self.adapters = self._build_adapters()
            self.optimizer = torch.optim.AdamW(
                self.adapters.groups(config.learning_rate), weight_decay=config.weight_decay
            )

    def _build_adapters(self) -> Adapters:
        layers, config = linears(self.model), self.config
        own = config.adapter
        chosen = targets.select(layers, config.targets, own.include, own.exclude, own.double_blocks, own.single_blocks)
        sizes = targets.ranks(chosen, config.rank, config.scale_alpha, own.ranks)
        sites = {n: Site(layers[n].in_features, layers[n].out_features, *size) for n, size in sizes.items()}
        adapters = Adapters(sites, own, config.seed, self.device, lambda name: row_norms(layers[name], self.device))
        if own.start_from:
            start_from(adapters, lora.trainable(self.model, read.load(Path(own.start_from))))
        return adapters

    def run(self) -> Generator[Event, None, None]:
        """Train, yielding an event after every step. Close it (or let it raise) at any time: the model is given back.

        Autograd and ComfyUI's training flag are on inside a step only, so a listener may use ComfyUI as usual.
        """
        with closing(self._run()) as told:
            for event in told:
                if self.is_main:
                    yield event

    def _run(self) -> Generator[Event, None, None]:
        warning = identify.distilled_warning(self.model)
        if warning:
            yield Warned(warning)
        yield Phase("loading")
        config = self.config
        order = batches(self.samples, self.step_size, self.repeats, config.seed, config.steps, config.epochs)
        with borrow(self.model, self.adapters.deltas(), config.checkpointing, self._room()) as borrowed:
            yield from self._validate(borrowed, 0)
            for step, indices in enumerate(order, 1):
                yield self._timed_step(borrowed, step, [self.samples[i] for i in indices])
            yield from self._validate(borrowed, self.total)

    def _room(self) -> float:
        """Bytes that training needs beside the weights: adapters with gradients and moments, and activations."""
        adapters = 16 * sum(p.numel() for p in self.adapters.trainable())
        hidden, double, single, _ = identify.sizes(self.model)
        tokens = self.config.batch * max(512 + s.tokens for s in self.samples)
        kept_per_block = 2 if self.config.checkpointing else 40  # activations of the hidden width, in 2-byte values
        return adapters + 2.0 * tokens * hidden * (kept_per_block * (double + single) + 60)

    def _timed_step(self, borrowed, step: int, batch: list[Sample]) -> Stepped:
        started = time.perf_counter()
        with training_mode(), self.adapters.dropping(self.config.seed, step):
            loss, preservation = self._step(borrowed, batch)
        self.history.add(loss, preservation, time.perf_counter() - started)
        return Stepped(step, self.total, loss, self.history.smoothed[-1], preservation, self.history.seconds[-1])

    def _step(self, borrowed, batch: list[Sample]) -> tuple[float, float]:
        """One optimizer step on the samples of all processes. Returns the velocity error and the preservation loss.

        Noise and times are drawn for all samples in every process, so that they do not depend on the split.
        """
        noise = torch.randn((len(batch), *batch[0].latent.shape[1:]), generator=self.generator)
        times = self._times(noise)
        losses = torch.zeros(2, dtype=torch.float64)
        for rows, weight in processes.shares(self.accelerator, len(batch), self.config.batch):
            losses += self._backward(borrowed, [batch[i] for i in rows], noise[rows], times[rows], weight)
        loss, preservation = self._total(losses).tolist()
        if not math.isfinite(loss):
            raise UserError(f"The loss is {loss} after {len(self.history.losses)} steps; lower the learning rate.")
        parameters = self.adapters.trainable()
        processes.add_gradients(self.accelerator, parameters)
        torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, preservation

    def _backward(self, borrowed, batch: list[Sample], noise: Tensor, t: Tensor, weight: float) -> Tensor:
        """Add gradients of samples that weigh ``weight`` each. Returns (2,): their velocity error and preservation."""
        x0 = torch.cat([s.latent for s in batch]).to(self.device, torch.float32)
        noise, t = noise.to(self.device), t.to(self.device)
        x_t = interpolate(x0, noise, t)
        predicted = self._predict(borrowed, x_t, t, batch)
        target = velocity_target(x0, noise)
        guided = differential_target(predicted, target, self.config.differential_guidance)
        loss = weight * mean_squared_error(predicted.detach(), target).sum().item()
        self.accelerator.backward(weight * mean_squared_error(predicted, guided).sum())
        preservation = self._preserve(borrowed, x_t, t, batch, weight) if self.config.preservation else 0.0
        return torch.tensor([loss, preservation], dtype=torch.float64)

    def _total(self, losses: Tensor) -> Tensor:
        return processes.total(self.accelerator, losses.to(self.accelerator.device))

    def _times(self, noise: Tensor) -> Tensor:
        """(B,) logit-normal times, moved towards noise the more tokens the image has."""
        return shift(logit_normal(len(noise), self.generator), linear_mu(noise[0, 0].numel()))

    def _preserve(self, borrowed, x_t: Tensor, t: Tensor, batch: list[Sample], weight: float) -> float:
        """Backward of the preservation loss: with the class word the adapted model shall predict what the base does.

        A second forward and backward of its own, so that only one graph is in memory at a time.
        """
        batch = [replace(sample, embeds=sample.class_embeds) for sample in batch]
        with self._base_model(), torch.no_grad():
            prior = self._predict(borrowed, x_t, t, batch)
        loss = weight * mean_squared_error(self._predict(borrowed, x_t, t, batch), prior).sum()
        self.accelerator.backward(self.config.preservation * loss)
        return loss.item()

    @contextmanager
    def _base_model(self) -> Iterator[None]:
        self.adapters.enabled = False
        try:
            yield
        finally:
            self.adapters.enabled = True

    def _predict(self, borrowed, x_t: Tensor, t: Tensor, batch: list[Sample]) -> Tensor:
        conditions = [
            Condition(s.embeds.clone(), tuple(r.clone() for r in s.references), self.config.guidance) for s in batch
        ]
        return velocity(borrowed, x_t, t, conditions)

    def _validate(self, borrowed, step: int) -> Iterator[Event]:
        chosen = self.samples[:: max(1, len(self.samples) // max(1, self.config.validation_items))]
        chosen = chosen[: self.config.validation_items]
        if not chosen:
            return
        yield Phase("validating")

        def predict(x_t: Tensor, t: Tensor, batch: list[Sample]) -> Tensor:
            with training_mode(), torch.no_grad():
                return self._predict(borrowed, x_t.to(self.device), t.to(self.device), batch)

        losses = torch.zeros(1, dtype=torch.float64)
        for rows, weight in processes.shares(self.accelerator, len(chosen), 1):
            losses += sum(weight * fixed_loss(predict, chosen[i], self.config.seed + i) for i in rows)
        loss = self._total(losses).item()
        self.history.validation[step] = loss
        yield Validated(step, loss)
