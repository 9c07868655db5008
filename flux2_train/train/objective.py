"""What a step learns: the parts of its loss, each a forward pass that can be run backward before the next begins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.samples import Sample
from ..flow import guidance as guide
from ..flow import loss as losses
from ..flow.preservation import outside
from ..flow.target import differential_target, mean_squared_error
from ..flow.weighting import place_weights, replaced, weighted
from ..settings.training import TrainingSettings
from . import timesteps


@dataclass(frozen=True)
class Case:
    """A batch with its randomness drawn: ``x_t`` and ``target`` (B, 128, h, w), ``t`` (B,), dev's ``guidance``."""

    samples: list[Sample]
    x_t: Tensor
    t: Tensor
    target: Tensor
    guidance: list[float]


@dataclass(frozen=True)
class Part:
    """A part of a step's loss per sample (B,), as it is learned from and as it is told."""

    loss: Tensor
    velocity_error: Tensor | None = None
    preservation: Tensor | None = None


Predict = Callable[[Case], Tensor]
Memo = dict[str, Tensor]  # what carries no gradient, by name; given back, it is used again


def frozen(memo: Memo, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """The value of ``compute`` without gradient, the same one for as long as ``memo`` lives."""
    if name not in memo:
        with torch.no_grad():
            memo[name] = compute().detach()
    return memo[name]


class Objective:
    """Composes the options of a run into the parts of a step's loss.

    ``predict`` gives the adapted model's velocity for a case, ``base_model`` switches the adapters off in its block,
    ``blank`` is the embedding of no caption (1, L, D).
    """

    def __init__(
        self,
        config: TrainingSettings,
        predict: Predict,
        base_model: Callable[[], AbstractContextManager],
        blank: Tensor | None = None,
    ):
        self.config, self.predict, self.base_model, self.blank = config, predict, base_model, blank

    def parts(self, step: int) -> list[Callable[[Case, Memo], Part]]:
        """The parts of optimizer step ``step`` (from 1), to be run one after the other."""
        preserving = self.config.preservation and (step - 1) % self.config.preservation_options.every == 0
        if not preserving:
            return [self.learn]
        return [self.learn_and_preserve] if self.config.preservation_options.together else [self.learn, self.preserve]

    def learn(self, case: Case, memo: Memo) -> Part:
        """The prediction's error against the target."""
        return self._learned(case, memo, self.predict(case))

    def preserve(self, case: Case, memo: Memo) -> Part:
        """With the class word, or without a caption, the adapted model shall predict what the base model does."""
        preserved = self._preserved(case)
        return self._kept(preserved, memo, self.predict(preserved))

    def learn_and_preserve(self, case: Case, memo: Memo) -> Part:
        """Both as one pass of twice the size: faster where the device has room for both graphs."""
        preserved = self._preserved(case)
        learned, kept = self.predict(_joined(case, preserved)).chunk(2)
        first, second = self._learned(case, memo, learned), self._kept(preserved, memo, kept)
        return Part(first.loss + second.loss, first.velocity_error, second.preservation)

    def _learned(self, case: Case, memo: Memo, predicted: Tensor) -> Part:
        raw = mean_squared_error(predicted.detach(), case.target)
        if self.config.guidance.true_cfg != 1:
            predicted = guide.guided(predicted, self.predict(self._unconditional(case)), self.config.guidance.true_cfg)
        loss = self._loss(case, predicted, self._target(case, memo, predicted))
        return Part(loss + self._outside(case, memo, predicted), velocity_error=raw)

    def _target(self, case: Case, memo: Memo, predicted: Tensor) -> Tensor:
        target, options = self._aim(case, memo), self.config.guidance
        if options.contrastive_guidance != 1:
            unconditional = frozen(memo, "unconditional", lambda: self.predict(self._unconditional(case)))
            scale = guide.scale_at(case.t, options.contrastive_guidance, options.contrastive_schedule)
            target = guide.contrastive_target(target, unconditional, scale, options.contrastive_project)
        if self.config.differential_guidance != 1:
            fixed = frozen(memo, "prediction", lambda: predicted)
            target = differential_target(fixed, target, self.config.differential_guidance)
        return target

    def _aim(self, case: Case, memo: Memo) -> Tensor:
        """The velocity to learn: the image's, or the base model's own for samples that are to keep it."""
        chosen = [s.base_target for s in case.samples]
        if not any(chosen):
            return case.target
        return replaced(case.target, frozen(memo, "base", lambda: self._base(case)), chosen)

    def _loss(self, case: Case, predicted: Tensor, target: Tensor) -> Tensor:
        """(B,) the chosen loss, weighted by place, sample and time, and clamped."""
        options = self.config.loss
        width = lambda: losses.huber_width(case.t, options.huber_width, options.huber_schedule)  # noqa: E731
        elements = losses.elementwise(options.loss, width, options.wavelet_detail)(_difference(predicted, target))
        factors = place_weights([s.mask for s in case.samples], [s.weight for s in case.samples], elements)
        loss = weighted(elements, factors).flatten(1).mean(1)
        weights = timesteps.weights(self.config.timesteps, case.t)
        return losses.clamped(loss if weights is None else loss * weights.to(loss), options.loss_min, options.loss_max)

    def _outside(self, case: Case, memo: Memo, predicted: Tensor) -> Tensor | float:
        """(B,) the distance from the base model's prediction where the masks are dark."""
        if not self.config.preservation_options.outside_mask:
            return 0.0
        masks = [s.mask for s in case.samples]
        if all(mask is None for mask in masks):
            return 0.0
        distance = losses.squared(_difference(predicted, frozen(memo, "base", lambda: self._base(case))))
        return self.config.preservation_options.outside_mask * (distance * outside(masks, distance)).flatten(1).mean(1)

    def _kept(self, preserved: Case, memo: Memo, predicted: Tensor) -> Part:
        prior = frozen(memo, "prior", lambda: self._base(preserved))
        error = mean_squared_error(predicted, prior)
        if self.config.preservation_options.kind == "class" and any(s.is_reg for s in preserved.samples):
            # their caption is its own class caption: keeping it would keep them from being learned
            error = error * torch.tensor([not s.is_reg for s in preserved.samples], device=error.device)
        return Part(self.config.preservation * error, preservation=error.detach())

    def _base(self, case: Case) -> Tensor:
        with self.base_model():
            return self.predict(case)

    def _preserved(self, case: Case) -> Case:
        if self.config.preservation_options.kind == "blank":
            return self._unconditional(case)
        return replace(case, samples=[replace(s, embeds=s.class_embeds) for s in case.samples])

    def _unconditional(self, case: Case) -> Case:
        return replace(case, samples=[replace(s, embeds=self.blank) for s in case.samples])


def _difference(predicted: Tensor, target: Tensor) -> Tensor:
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    return predicted.to(dtype) - target.to(dtype)


def _joined(a: Case, b: Case) -> Case:
    return Case(
        a.samples + b.samples,
        torch.cat((a.x_t, b.x_t)),
        torch.cat((a.t, b.t)),
        torch.cat((a.target, b.target)),
        a.guidance + b.guidance,
    )
