"""Measures and paints between steps: validation loss, per-image losses, previews. Changes nothing that is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..data.held_out import also_trained
from ..data.samples import Sample
from ..events import BestSoFar, Event, ImageLoss, ImagesMeasured, Phase, Validated
from ..host.borrowed.borrow import training_mode
from ..host.graph_types import ModelPatcher
from ..train import processes
from ..train.between_steps import BetweenSteps
from ..train.trainer import Trainer
from .best import best_step
from .copies import TrainingPictures
from .fixed_noise import NOISY, OTHERS, TIMES, fixed_loss, fixed_losses, lenders
from .previews import Previews
from .selectivity import NO_TRIGGER, Pair, SelectivityMeter, pairs


class Evaluation(BetweenSteps):
    """Measures and paints with a trainer's adapters after some of its steps, and yields the results as events."""

    def __init__(self, trainer: Trainer, embeds: Mapping[str, Tensor]):
        self.trainer, self.previews, self.meter = trainer, None, None
        if trainer.config.validation_loss.selectivity:
            self.meter = SelectivityMeter(trainer, self._pairs())
        if trainer.previews is not None:
            method = trainer.config.guidance.references
            together = trainer.config.memory.share_base
            self.previews = Previews(trainer.previews, trainer.model, embeds, trainer.adapters, method, together)
            if trainer.previews.config.copies:
                self.previews.pictures = TrainingPictures(trainer.samples)

    def before(self) -> Iterator[Event]:
        """Work to do before the model is borrowed."""
        warning = also_trained(self.trainer.held_out, self.trainer.samples)
        if warning:
            yield warning
        if self.meter and not self.meter.pairs and (len(self.trainer.held_out) or self._spread()):
            yield Phase(NO_TRIGGER)
        if self.previews and self._paints():
            yield from self.previews.prepare()

    def _paints(self) -> bool:
        """Whether this process paints: the main one alone, or all of those that share the base."""
        return self.trainer.is_main or self.trainer.config.memory.share_base

    def measure(self, borrowed: ModelPatcher, step: int) -> Iterator[Event]:
        """The losses that are due after ``step`` steps."""
        trainer = self.trainer
        if trainer.config.validation_loss.is_due(step, trainer.total):
            yield from self._validate(borrowed, step)
        if trainer.config.validation_loss.per_image_is_due(step, trainer.total):
            yield from self._measure_images(borrowed, step)

    def paint(self, borrowed: ModelPatcher, step: int, asked: bool = False) -> Iterator[Event]:
        """The previews that are due after ``step`` steps, or were ``asked`` for. Only the main process tells them."""
        trainer, previews = self.trainer, self.previews
        if not previews or not previews.on or not self._paints():
            return
        if asked or previews.config.is_due(step, trainer.total):
            yield from previews.paint(borrowed, step, lambda: trainer.weights_for("preview"), trainer.memory.room)

    def choose_prompts(self, chosen: Sequence[tuple[str, ...]]) -> None:
        """See ``BetweenSteps``."""
        if self.previews:
            self.previews.choose(chosen)

    def _validate(self, borrowed: ModelPatcher, step: int) -> Iterator[Event]:
        trainer = self.trainer
        chosen = self._validated()
        if not chosen:
            return
        predict, losses = self._predict(borrowed), torch.zeros(1, dtype=torch.float64)
        shares = processes.shares(trainer.accelerator, len(chosen), 1)
        for done, (rows, weight) in enumerate(shares, 1):
            yield Phase(
                f"validating, image {min(done * trainer.accelerator.num_processes, len(chosen))} of {len(chosen)}"
            )
            with trainer.weights_for("preview"):
                losses += sum(weight * self._fixed_loss(predict, chosen[i], trainer.config.seed + i) for i in rows)
        loss = trainer.total_of(losses).item()
        trainer.history.validation[step] = loss
        yield Validated(step, loss, bool(trainer.held_out))
        yield from self._measure_selectivity(predict, step)
        if step and best_step(trainer.history) == step:
            yield BestSoFar(step)

    def _validated(self) -> list[Sample]:
        """The samples whose loss is the validation loss."""
        trainer = self.trainer
        return list(trainer.held_out) or [trainer.samples[i] for i in self._spread()]

    def _spread(self) -> list[int]:
        """The places of ``validation_items`` training samples at even distances, or of all if there are fewer."""
        count, samples = self.trainer.config.validation_items, self.trainer.samples
        return list(range(0, len(samples), max(1, len(samples) // max(1, count))))[:count]

    def _pairs(self) -> list[Pair]:
        """What selectivity is measured on: images of the validation, or training images if those have no trigger."""
        trainer, seed = self.trainer, self.trainer.config.seed
        held_out = pairs(trainer.held_out, range(len(trainer.held_out)), seed)
        return held_out or pairs(trainer.samples, self._spread(), seed)

    def _fixed_loss(self, predict: Callable, sample: Sample, seed: int) -> float:
        seen = partial(self.meter.see, sample, seed) if self.meter else lambda t, velocity: None
        return fixed_loss(predict, sample, seed, seen)

    def _measure_selectivity(self, predict: Callable, step: int) -> Iterator[Event]:
        if not self.meter or not self.meter.pairs:
            return
        if step:  # before the first one nothing has changed
            yield from self.meter.measure(predict, step)
        self.meter.just_seen.clear()

    def _measure_images(self, borrowed: ModelPatcher, step: int) -> Iterator[Event]:
        """The loss of every single image, trained on or held out, with its own caption and with a few others'."""
        trainer, predict = self.trainer, self._predict(borrowed)
        groups = ((trainer.samples, False), (trainer.held_out, True))
        places = [(samples, i, held_out) for samples, held_out in groups for i in range(len(samples))]
        captions = [item.caption for item in trainer.samples.items]
        lent = [lenders(captions, samples.items[i].caption, row) for row, (samples, i, _) in enumerate(places)]
        losses = torch.zeros(len(places), len(TIMES) + OTHERS, dtype=torch.float64)
        for done, (rows, weight) in enumerate(processes.shares(trainer.accelerator, len(places), 1)):
            yield Phase(f"measuring images one by one, {done + 1} of {len(places)}")
            with trainer.weights_for("preview"):
                for row in rows if weight else ():
                    samples, i, _ = places[row]
                    errors = self._errors(predict, samples[i], lent[row], trainer.config.seed + row)
                    losses[row, : len(errors)] = errors
        all_losses = trainer.total_of(losses).tolist()
        yield ImagesMeasured(step, tuple(
            ImageLoss(samples.items[i].path, held_out, tuple(row[:len(TIMES)]), self._named(indices, row[len(TIMES):]))
            for (samples, i, held_out), indices, row in zip(places, lent, all_losses, strict=True)
        ))  # fmt: skip

    def _named(self, lent: list[int], losses: list[float]) -> tuple[tuple[str, float], ...]:
        """Each loss with the name of the image whose caption was used. ``losses`` may be longer than ``lent``."""
        names = [self.trainer.samples.items[index].path.name for index in lent]
        return tuple(zip(names, losses, strict=False))

    def _errors(self, predict: Callable, sample: Sample, lent: list[int], seed: int) -> Tensor:
        """Errors at TIMES with the image's own caption, then one mean over NOISY for each lent caption. Same noise."""
        samples = self.trainer.samples
        own, captions = fixed_losses(predict, sample, seed), [samples.items[index].caption for index in lent]
        recaptioned = [replace(sample, embeds=samples.embeds[caption]) for caption in captions]
        return torch.stack([*own, *(fixed_losses(predict, each, seed, NOISY).mean() for each in recaptioned)])

    def _predict(self, borrowed: ModelPatcher) -> Callable:
        trainer = self.trainer

        def predict(x_t: Tensor, t: Tensor, batch: list[Sample]) -> Tensor:
            with training_mode(), torch.no_grad():
                return trainer.predict(borrowed, x_t.to(trainer.device), t.to(trainer.device), batch)

        return predict
