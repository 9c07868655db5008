"""Scheduled sampling: some inputs of a step are made by the model itself: the node Scheduled Sampling."""

from __future__ import annotations

from typing import Literal

from .base import Settings, setting, settings


@settings
class RolloutSettings(Settings):
    """Scheduled sampling (rollout): training on what the model itself makes while it samples.

    ``reflexflow``: Huang et al. 2025, arXiv 2512.04904.
    """

    probability: float = setting(
        0.0,
        "How often an input is not the image with noise, but what the model itself makes of more noise in the last "
        "steps of sampling. 0 is off, 0.2 to 0.5 usual. Each such step costs a forward pass.",
        ge=0, le=1, step=0.05,
    )  # fmt: skip
    max_offset: int = setting(
        1, "How many sampling steps the model makes before, at most: 1 to this many, drawn for each sample.",
        ge=1, le=100,
    )  # fmt: skip
    inference_steps: int = setting(
        20, "How many steps a whole sampling has: as many as you sample with; 4 for distilled klein.", ge=1, le=1000
    )
    schedule: Literal["flux2", "uniform"] = setting(
        "flux2", "Times of the steps: as FLUX.2 is sampled at this size, or at equal distances.", advanced=True
    )
    sampler: Literal["euler", "heun"] = setting(
        "euler", "heun is more exact and takes two forward passes for each step.", advanced=True
    )
    start_step: int = setting(
        0,
        "Before this optimizer step nothing is sampled: a LoRA that knows nothing yet drifts far. 0 is from the start.",
        ge=0, le=1_000_000, advanced=True,
    )  # fmt: skip
    ramp_steps: int = setting(
        0, "Over so many optimizer steps after start_step the probability rises. 0 is at once.",
        ge=0, le=1_000_000, advanced=True,
    )  # fmt: skip
    reflexflow: bool = setting(
        False,
        "For sampled inputs: weighs each place by how far the model drifts there, and pulls the prediction towards the "
        "image. One more forward pass.",
        advanced=True,
    )
    reflex_weight: float = setting(
        1.0, "For reflexflow: how strongly places are weighed. 0 weighs all alike.", ge=0, le=100, step=0.1,
        advanced=True,
    )  # fmt: skip
    reflex_drift: float = setting(
        10.0, "For reflexflow: how strongly the prediction is pulled towards the image. 10 is the paper's.",
        ge=0, le=1000, step=1, advanced=True,
    )  # fmt: skip
