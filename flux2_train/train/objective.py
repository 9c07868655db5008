"""What a step learns: the parts of its loss. The backward pass of one part may run before the next part begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from ..flow import guidance as guide
from ..flow import loss as losses
from ..flow.preservation import outside
from ..flow.rollout import drift_loss, drift_weights
from ..flow.target import differential_target, mean_squared_error
from ..flow.weighting import place_weights, replaced, weighted
from ..settings.slider import OFF
from ..settings.training import TrainingSettings
from ..streaming.uploads import uploaded
from . import timesteps
from .slider import Slider
from .step_input import Memo, ObjectivePart, StepInput, frozen

Predict = Callable[[StepInput], Tensor]


class Objective:
    """Composes the options of a run into the parts of a step's loss.

    ``predict`` gives the adapted model's velocity, ``base_model`` is a context manager that switches the adapters off,
    ``blank`` is the embedding of the empty caption (1, L, D), ``prompts`` are those of a slider.
    """

    def __init__(
        self,
        config: TrainingSettings,
        predict: Predict,
        base_model: Callable[[], AbstractContextManager],
        blank: Tensor | None = None,
        prompts: Mapping[str, Tensor] | None = None,
    ):
        self.config, self.predict, self.base_model, self.blank = config, predict, base_model, blank
        self.slider = Slider(config.slider, prompts or {}, predict, self._base, self._loss)

    def parts(self, step: int) -> list[Callable[[StepInput, Memo], ObjectivePart]]:
        """The parts of optimizer step ``step`` (from 1), to be run one after the other."""
        # Counted so that step 1 preserves only if each step does: nothing has been learned before it.
        preserving = self.config.preservation and step % self.config.preservation_options.every == 0
        learning = [self.learn] if self.config.slider.slider == OFF else self.slider.parts()
        if not preserving:
            return learning
        return [self.learn_and_preserve] if self.config.preservation_options.together else [*learning, self.preserve]

    def learn(self, inputs: StepInput, memo: Memo) -> ObjectivePart:
        """The prediction's error against the target."""
        return self._learning_part(inputs, memo, self.predict(inputs))

    def preserve(self, inputs: StepInput, memo: Memo) -> ObjectivePart:
        """The adapted model's distance from the base model with the class word as caption, or with no caption."""
        preserved = self._preservation_input(inputs)
        return self._preservation_part(preserved, memo, self.predict(preserved))

    def learn_and_preserve(self, inputs: StepInput, memo: Memo) -> ObjectivePart:
        """``learn`` and ``preserve`` in one pass of twice the batch: faster if the device has room for both graphs."""
        preserved = self._preservation_input(inputs)
        learned, preserved_prediction = self.predict(_concatenated(inputs, preserved)).chunk(2)
        first = self._learning_part(inputs, memo, learned)
        second = self._preservation_part(preserved, memo, preserved_prediction)
        return ObjectivePart(first.loss + second.loss, first.velocity_error, second.preservation)

    def _learning_part(self, inputs: StepInput, memo: Memo, predicted: Tensor) -> ObjectivePart:
        velocity_error = mean_squared_error(predicted.detach(), inputs.target)
        if self.config.guidance.true_cfg != 1:
            unconditional = self.predict(self._unconditional(inputs))
            predicted = guide.guided(predicted, unconditional, self.config.guidance.true_cfg)
        loss = self._loss(inputs, memo, predicted, self._target(inputs, memo, predicted))
        loss = loss + self._drift(inputs, predicted) + self._outside_mask(inputs, memo, predicted)
        return ObjectivePart(loss, velocity_error=velocity_error)

    def _target(self, inputs: StepInput, memo: Memo, predicted: Tensor) -> Tensor:
        target, options = self._plain_target(inputs, memo), self.config.guidance
        if options.contrastive_guidance != 1:
            unconditional = frozen(memo, "unconditional", lambda: self.predict(_unrouted(self._unconditional(inputs))))
            scale = guide.scale_at(inputs.t, options.contrastive_guidance, options.contrastive_schedule)
            target = guide.contrastive_target(target, unconditional, scale, options.contrastive_project)
        if self.config.differential_guidance != 1:
            detached = frozen(memo, "prediction", lambda: predicted)
            target = differential_target(detached, target, self.config.differential_guidance)
        return target

    def _plain_target(self, inputs: StepInput, memo: Memo) -> Tensor:
        """The target before guidance: the image's velocity, or the base model's for samples with ``base_target``."""
        towards_base = [s.base_target for s in inputs.samples]
        if not any(towards_base):
            return inputs.target
        return replaced(inputs.target, frozen(memo, "base", lambda: self._base(_unrouted(inputs))), towards_base)

    def _loss(self, inputs: StepInput, memo: Memo, predicted: Tensor, target: Tensor) -> Tensor:
        """(B,) the loss that the user chose, weighted by mask, sample and time, then clamped."""
        options = self.config.loss
        width = lambda: losses.huber_width(inputs.t, options.huber_width, options.huber_schedule)  # noqa: E731
        elements = losses.elementwise(options.loss, width, options.wavelet_detail)(_difference(predicted, target))
        factors = place_weights(_masks(inputs), [s.weight for s in inputs.samples], elements)
        loss = weighted(weighted(elements, factors), self._drift_weights(inputs, memo, predicted)).flatten(1).mean(1)
        weights = timesteps.weights(self.config.timesteps, inputs.t)
        return losses.clamped(loss if weights is None else loss * weights.to(loss), options.loss_min, options.loss_max)

    def _drift_weights(self, inputs: StepInput, memo: Memo, predicted: Tensor) -> Tensor | None:
        """ReflexFlow's factors on the elementwise loss of samples that the model made itself; None without any."""
        options = self.config.rollout
        if not options.reflexflow or inputs.on_path is None:
            return None
        drifted = frozen(memo, "prediction", lambda: predicted)
        clean = frozen(memo, "clean", lambda: self.predict(inputs.changed(inputs.on_path)))
        factors = drift_weights(clean, drifted, options.reflex_weight)
        return torch.where(inputs.rolled.view(-1, 1, 1, 1), factors, 1.0)

    def _drift(self, inputs: StepInput, predicted: Tensor) -> Tensor | float:
        """(B,) ReflexFlow's pull towards the image, for samples that the model made itself."""
        options = self.config.rollout
        if not options.reflexflow or inputs.on_path is None:
            return 0.0
        x0 = inputs.on_path - inputs.t.view(-1, 1, 1, 1) * inputs.target
        return options.reflex_drift * inputs.rolled * drift_loss(predicted, inputs.x_t, x0)

    def _outside_mask(self, inputs: StepInput, memo: Memo, predicted: Tensor) -> Tensor | float:
        """(B,) the weighted distance from the base model's prediction outside the masks, where they are dark."""
        if not self.config.preservation_options.outside_mask:
            return 0.0
        masks = _masks(inputs)
        if all(mask is None for mask in masks):
            return 0.0
        distance = losses.squared(_difference(predicted, frozen(memo, "base", lambda: self._base(_unrouted(inputs)))))
        return self.config.preservation_options.outside_mask * (distance * outside(masks, distance)).flatten(1).mean(1)

    def _preservation_part(self, preserved: StepInput, memo: Memo, predicted: Tensor) -> ObjectivePart:
        prior = frozen(memo, "prior", lambda: self._base(preserved))
        error = mean_squared_error(predicted, prior)
        if self.config.preservation_options.kind == "class" and any(s.is_reg for s in preserved.samples):
            # a regularisation image's caption is its class caption: preserving it would prevent learning it
            counts = zip(error.split(1), preserved.samples, strict=True)
            error = torch.cat([own * (not sample.is_reg) for own, sample in counts])
        weight = self.config.preservation * self.config.preservation_options.every  # the same on average over steps
        return ObjectivePart(weight * error, preservation=error.detach())

    def _base(self, inputs: StepInput) -> Tensor:
        with self.base_model():
            return self.predict(inputs)

    def _preservation_input(self, inputs: StepInput) -> StepInput:
        if self.config.preservation_options.kind == "blank":
            return self._unconditional(inputs)
        return replace(inputs, samples=[replace(s, embeds=s.class_embeds) for s in inputs.samples])

    def _unconditional(self, inputs: StepInput) -> StepInput:
        return replace(inputs, samples=[replace(s, embeds=self.blank) for s in inputs.samples])


def _masks(inputs: StepInput) -> list[Tensor | None]:
    """The samples' masks, on the device."""
    device = inputs.x_t.device
    return [None if s.mask is None else uploaded(s.mask, device) for s in inputs.samples]


def _difference(predicted: Tensor, target: Tensor) -> Tensor:
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    return predicted.to(dtype) - target.to(dtype)


def _unrouted(inputs: StepInput) -> StepInput:
    """For targets: routed predictions are less accurate, and a target need not share the prediction's tokens."""
    return replace(inputs, routes=()) if inputs.routes else inputs


def _concatenated(a: StepInput, b: StepInput) -> StepInput:
    return StepInput(
        a.samples + b.samples,
        torch.cat((a.x_t, b.x_t)),
        torch.cat((a.t, b.t)),
        torch.cat((a.target, b.target)),
        a.guidance + b.guidance,
        tuple(replace(i, kept=torch.cat((i.kept, j.kept))) for i, j in zip(a.routes, b.routes, strict=True)),
        None if a.on_path is None else torch.cat((a.on_path, b.on_path)),
        None if a.entry is None else tuple(map(torch.cat, zip(a.entry, b.entry, strict=True))),
    )
