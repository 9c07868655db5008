"""Which noise levels are trained on and how much each counts: the node Timesteps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from .base import Settings, setting, settings
from .text import Numbers


@settings
class TimestepSettings(Settings):
    """Which times ``t`` are trained on (1 is pure noise), and how much each counts.

    ``values`` are times for ``list`` (above 1 they are thousandths) and heights at equal distances for ``curve``.
    """

    distribution: Literal["sigmoid", "uniform", "weighted", "beta", "mode", "curve", "list", "round robin"] = setting(
        "sigmoid",
        "sigmoid stays in the middle and suits most. weighted is AI Toolkit's: all times alike, each counting as its "
        "measured curve says. list and round robin use the times in 'values'.",
    )
    shift: Literal["linear", "empirical", "constant", "none"] = setting(
        "linear",
        "Moves times towards noise: linear by image size (musubi's flux2_shift), empirical as FLUX.2 is sampled, "
        "constant by shift_factor. weighted and lists are never shifted.",
    )
    bias: Literal["balanced", "high noise", "low noise"] = setting(
        "balanced", "More draws at high noise teach layout and content, at low noise texture and style."
    )
    min: float = setting(
        0.0, "No times below this are drawn; the others keep their proportions. 0 is no limit.", ge=0, le=1, step=0.01
    )
    max: float = setting(
        1.0, "No times above this are drawn; the others keep their proportions. 1 is no limit.", ge=0, le=1, step=0.01
    )
    weighting: Literal["none", "sigma_sqrt", "cosmap", "bell", "measured", "table"] = setting(
        "none",
        "What a sample's loss counts by its time. none is right for velocity; sigma_sqrt stresses low noise very "
        "strongly, bell the middle, table uses 'weights'.",
    )
    strata: int = setting(
        0,
        "Splits the distribution into this many parts and visits each once per round: steadier than chance on small "
        "sets. 0 is off, 10 to 50 are useful.",
        ge=0, le=100_000, advanced=True,
    )  # fmt: skip
    sigmoid_scale: float = setting(
        1.0, "For sigmoid: above 1 spreads times towards both ends, below 1 gathers them.",
        ge=0.01, le=100, step=0.05, advanced=True,
    )  # fmt: skip
    sigmoid_mean: float = setting(
        0.0, "For sigmoid: above 0 moves its middle towards noise, below 0 away from it.",
        ge=-20, le=20, step=0.05, advanced=True,
    )  # fmt: skip
    sigmoid_std: float = setting(
        1.0, "For sigmoid: width of the normal distribution below it; 1 is usual.",
        ge=0.01, le=100, step=0.05, advanced=True,
    )  # fmt: skip
    beta_alpha: float = setting(
        2.0, "For beta: larger moves times towards noise; equal to beta_beta is symmetric.",
        ge=0.01, le=1000, step=0.1, advanced=True,
    )  # fmt: skip
    beta_beta: float = setting(
        2.0, "For beta: larger moves times away from noise; equal to beta_alpha is symmetric.",
        ge=0.01, le=1000, step=0.1, advanced=True,
    )  # fmt: skip
    mode_scale: float = setting(
        1.29, "For mode: larger gathers times more in the middle; below 0 at both ends.",
        ge=-1, le=1.75, step=0.01, advanced=True,
    )  # fmt: skip
    shift_factor: float = setting(
        3.0, "For the constant shift: 3 is SimpleTuner's, 1 none; FLUX.2 samples at 5 to 10.",
        ge=0.01, le=100, step=0.1, advanced=True,
    )  # fmt: skip
    shift_steps: int = setting(
        20, "For the empirical shift: how many steps you sample with; 4 for distilled klein.",
        ge=1, le=1000, advanced=True,
    )  # fmt: skip
    values: Numbers = setting(
        (),
        "For list and round robin: times such as 1, 0.75, 0.5, 0.25. For curve: heights of the density at equal "
        "distances from t = 0 to 1, such as 0, 1, 3.",
        advanced=True,
    )
    weights: Numbers = setting(
        (), "For weighting table: weights at equal distances from t = 0 to 1, such as 0.5, 1, 1.5.", advanced=True
    )

    @property
    def listed(self) -> bool:
        """The times are given one by one: they are neither shifted nor moved."""
        return self.distribution in ("list", "round robin")

    @property
    def times(self) -> tuple[float, ...]:
        """The listed times in 0..1, without those outside the limits."""
        largest = max(self.values, default=0)
        times = self.values if largest <= 1 else tuple(value / 1000 for value in self.values)
        return tuple(t for t in times if self.min <= t <= self.max)

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.min >= self.max:
            yield f"The times are limited to {self.min:g}..{self.max:g}; min must be below max."
        if self.listed and not self.times:
            yield f"The distribution {self.distribution!r} has no time within its limits; list some, like 1, 0.5."
        if self.listed and min(self.values) <= 0:
            yield f"The list of times holds {min(self.values):g}; every time must be above 0."
        if self.distribution == "curve" and not _is_density(self.values):
            yield "The distribution 'curve' needs two heights or more, none below 0 and not all of them 0."
        if self.distribution == "weighted" and self.weighting != "none":
            yield "The distribution 'weighted' brings the measured weighting with it; set weighting to 'none'."
        if self.weighting == "table" and not _is_density(self.weights):
            yield "The weighting 'table' needs two weights or more, none below 0 and not all of them 0."


def _is_density(values: tuple[float, ...]) -> bool:
    return len(values) >= 2 and min(values) >= 0 and 0 < max(values) < math.inf
