"""The parts of a step that teach a slider: the same adapters at strength -1, then at strength 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.dataset import Dataset
from ..errors import UserError
from ..flow.slider import slider_target, with_other_image
from ..flow.target import mean_squared_error
from ..settings.slider import PAIRS, PROMPTS, SliderSettings
from ..streaming.uploads import uploaded
from .step_input import Memo, ObjectivePart, StepInput, frozen

Predict = Callable[[StepInput], Tensor]
NAMES = ("positive", "negative", "neutral")
FEW = 3  # images that a message names


@dataclass(frozen=True)
class Direction:
    """One part of the loss, half of it. The adapters have this ``strength`` in its forward and backward pass."""

    slider: Slider
    strength: float

    def __call__(self, inputs: StepInput, memo: Memo) -> ObjectivePart:
        return self.slider.learn(inputs, memo, self.strength)


def strength_of(part: Callable) -> float:
    """The strength that the adapters have while a part of a step is computed."""
    return part.strength if isinstance(part, Direction) else 1.0


class Slider:
    """Both directions of a slider. ``prompts`` are the embeds (1, L, D) of its positive, negative and neutral prompt.

    ``predict`` gives the adapted model's velocity, ``base`` the base model's, ``loss`` (B,) the loss that was chosen.
    """

    def __init__(
        self, config: SliderSettings, prompts: Mapping[str, Tensor], predict: Predict, base: Predict,
        loss: Callable[[StepInput, Memo, Tensor, Tensor], Tensor],
    ):  # fmt: skip
        self.config, self.prompts, self.predict, self.base, self.loss = config, prompts, predict, base, loss

    def parts(self) -> list[Callable[[StepInput, Memo], ObjectivePart]]:
        """The parts of a step, to be run one after the other."""
        return [Direction(self, -1.0), Direction(self, 1.0)]

    def learn(self, inputs: StepInput, memo: Memo, direction: float) -> ObjectivePart:
        """The loss of one direction. Each reports half of its error, so that together they report the mean of both."""
        asked = (
            self._of_prompts(inputs, memo, direction) if self.config.slider == PROMPTS else _of_pair(inputs, direction)
        )
        predicted = self.predict(asked)
        error = mean_squared_error(predicted.detach(), asked.target)
        loss = 0.5 * self.loss(asked, memo, predicted, asked.target)
        return ObjectivePart(loss, velocity_error=error / 2)

    def _of_prompts(self, inputs: StepInput, memo: Memo, direction: float) -> StepInput:
        plain = replace(inputs, routes=())

        def base(name: str) -> Tensor:
            return frozen(memo, f"slider's {name}", lambda: self.base(self._with(plain, name)))

        target = slider_target(*map(base, ("neutral", "positive", "negative")), direction, self.config.slider_guidance)
        return replace(self._with(inputs, "neutral"), target=target)

    def _with(self, inputs: StepInput, name: str) -> StepInput:
        return replace(inputs, samples=[replace(s, embeds=self.prompts[name]) for s in inputs.samples])


def _of_pair(inputs: StepInput, direction: float) -> StepInput:
    """The image at strength 1, and its reference with the same noise at -1. The reference itself is not shown."""
    alone = replace(inputs, samples=[replace(s, references=()) for s in inputs.samples])
    if direction > 0:
        return alone
    device = inputs.x_t.device
    x0, before = (uploaded(torch.cat(latents), device).to(inputs.x_t) for latents in
                  ([s.latent for s in inputs.samples], [s.references[0] for s in inputs.samples]))  # fmt: skip
    x_t, target = with_other_image(inputs.x_t, inputs.target, inputs.t, x0, before)
    return alone.changed(x_t, target=target)


def slider_embeds(config: SliderSettings, embeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The embeds of the slider's prompts by role. Raises UserError if they were not encoded."""
    missing = [text for text in config.texts if text not in embeds]
    if missing:
        raise UserError(
            f"The embeds lack the slider's prompts: write {' and '.join(map(repr, missing))} into 'prompts' of Cache "
            "Embeds, one per line, and queue again."
        )
    return dict(zip(NAMES, (embeds[text] for text in config.texts), strict=bool(config.texts)))


def require_pairs(config: SliderSettings, dataset: Dataset) -> None:
    """Raise UserError that names images of a slider of pairs without one reference of their own shape."""
    if config.slider != PAIRS:
        return
    if any(source.is_reg or source.reference_dropout for source in dataset.sources):
        raise UserError(
            "A slider learns from pairs: turn is_reg off and set reference dropout to 0 in every Dataset Folder."
        )
    wrong = [
        item.path.name
        for item in dataset.items
        if [r.latent_shape for r in item.references] != [item.view.latent_shape]
    ]
    if wrong:
        raise UserError(
            f"A slider learns from pairs, and these images have no single reference of their own shape: "
            f"{', '.join(wrong[:FEW])}{' ...' if len(wrong) > FEW else ''}. Name one folder in 'references' of Dataset "
            "Folder, and set the kind of Reference Options to 'strict'."
        )
