"""The loss, its target, and what is preserved: the nodes Training Objective and Preservation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .base import Settings, setting, settings


@settings
class LossSettings(Settings):
    """How far a prediction is from its target. ``huber_width`` is Huber's c."""

    loss: Literal["mse", "mae", "huber", "smooth_l1", "wavelet"] = setting(
        "mse",
        "mse is what the model was made with. mae and huber forgive outliers (bad images); wavelet stresses fine "
        "detail.",
    )
    huber_width: float = setting(
        0.1, "For huber and smooth_l1: errors below it count squared, above it linearly. 0.1 is usual.",
        ge=1e-4, le=10, step=0.01, round=False, advanced=True,
    )  # fmt: skip
    huber_schedule: Literal["constant", "exponential", "snr"] = setting(
        "constant",
        "How huber_width follows the noise: constant; exponential narrows it towards pure noise, snr widens it.",
        advanced=True,
    )
    wavelet_detail: float = setting(
        2.0, "For wavelet: weight of the three detail bands beside the smooth one. 1 is exactly mse.",
        ge=0, le=100, step=0.1, advanced=True,
    )  # fmt: skip
    loss_min: float = setting(
        0.0, "A sample whose loss is below this teaches nothing, which slows memorising down. 0 is off.",
        ge=0, le=1000, step=0.01, round=False, advanced=True,
    )  # fmt: skip
    loss_max: float = setting(
        0.0, "A sample whose loss is above this teaches nothing: broken images cannot hurt. 0 is off.",
        ge=0, le=1000, step=0.01, round=False, advanced=True,
    )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.loss_max and self.loss_min >= self.loss_max:
            yield f"The loss is clamped to {self.loss_min:g}..{self.loss_max:g}; loss_min must be below loss_max."


@settings
class GuidanceSettings(Settings):
    """Guidance in training, and at which time reference images are shown."""

    guidance: float = setting(
        1.0,
        "The guidance that dev is told while it trains; 1 is usual and samples well at 3 to 4. klein and nano have no "
        "such input and ignore it.",
        ge=0, le=100, step=0.1,
    )  # fmt: skip
    guidance_max: float = setting(
        0.0, "Draws dev's guidance for each sample between 'guidance' and this. 0 keeps it constant.",
        ge=0, le=100, step=0.1, advanced=True,
    )  # fmt: skip
    contrastive_guidance: float = setting(
        1.0,
        "Moves the target this many times as far from the prediction without a caption, so that guidance is built in. "
        "1 is off, 3 to 4 usual. One more forward pass per step.",
        ge=0, le=100, step=0.1, advanced=True,
    )  # fmt: skip
    contrastive_schedule: Literal["constant", "sigma"] = setting(
        "constant",
        "sigma lets contrastive guidance fade where there is little noise, which it would amplify.",
        advanced=True,
    )
    contrastive_project: bool = setting(
        False,
        "Scales the prediction without a caption to fit the target first (CFG-Zero), which calms contrastive guidance "
        "at high noise.",
        advanced=True,
    )
    true_cfg: float = setting(
        1.0,
        "Trains the mix of two predictions, with and without caption, that klein base samples with at this scale. 1 is "
        "off, 4 what it samples at. Steps take twice the time and memory.",
        ge=0, le=100, step=0.1, advanced=True,
    )  # fmt: skip
    references: Literal["index", "index_timestep_zero"] = setting(
        "index",
        "index shows reference images at the image's own time, as ComfyUI samples. index_timestep_zero shows them as "
        "clean, as SimpleTuner trains; LoRA Apply then samples so too.",
        advanced=True,
    )

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if 0 < self.guidance_max < self.guidance:
            yield f"guidance is drawn from {self.guidance:g} to {self.guidance_max:g}; the second must be the larger."
        if self.contrastive_guidance != 1 and self.true_cfg != 1:
            yield "Contrastive guidance and true CFG are both on; they teach the same twice, choose one of them."


@settings
class GuardSettings(Settings):
    """When a run whose loss is NaN, infinite or growing is stopped."""

    bad_losses: int = setting(
        5, "Steps whose loss is no number are left out; this many in a row stop the run.",
        ge=1, le=1_000_000, advanced=True,
    )  # fmt: skip
    divergence: float = setting(
        3.0, "Warns when the mean loss of 20 steps is this many times its lowest so far. 0 is off.",
        ge=0, le=1e6, step=0.5, advanced=True,
    )  # fmt: skip
    stop_on_divergence: bool = setting(
        False, "Ends the run at that warning instead of going on; what was learned is saved.", advanced=True
    )


@settings
class PreservationSettings(Settings):
    """What LoRA Trainer's ``preservation`` preserves, and how often.

    On average over ``every`` steps the loss has ``preservation`` times the preserved part, whatever ``every`` is.
    """

    kind: Literal["class", "blank"] = setting(
        "class",
        "class keeps what the class word means (differential output preservation). blank keeps what comes without a "
        "caption, and needs neither trigger nor class word.",
    )
    every: int = setting(
        3,
        "Preserve at every n-th step, and n times as strongly there. 3 takes two thirds of the time of 1, which "
        "preserves in each step.",
        ge=1, le=1_000_000,
    )  # fmt: skip
    together: bool = setting(
        False,
        "Run both passes as one batch: twice the memory of a step, and a tenth faster at most on two CPU cores.",
        advanced=True,
    )
    outside_mask: float = setting(
        0.0,
        "Keeps the base model's prediction where an image's mask is dark, this strongly. 0 is off, 0.5 is AI "
        "Toolkit's. Needs masks on the data set; one more forward pass.",
        ge=0, le=1000, step=0.1, advanced=True,
    )  # fmt: skip
