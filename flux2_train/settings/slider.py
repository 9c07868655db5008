"""Concept sliders: a LoRA whose strength moves one property: the node Concept Slider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .base import Settings, setting, settings

OFF, PROMPTS, PAIRS = "off", "prompts", "pairs"


@settings
class SliderSettings(Settings):
    """Concept sliders (Gandikota et al. 2023, arXiv 2311.12092), learned at strength 1 and -1 in every step."""

    slider: Literal["off", "prompts", "pairs"] = setting(
        OFF,
        "prompts: strength 1 moves the neutral prompt's pictures towards the positive prompt and away from the "
        "negative one, -1 the other way. pairs: 1 gives the images, -1 their references.",
    )
    positive: str = setting("", "For prompts: what strength 1 leads to, such as 'a very large cat'.")
    negative: str = setting("", "For prompts: what strength -1 leads to, such as 'a very small cat'.")
    neutral: str = setting("", "For prompts: what is moved, such as 'a cat'. Empty moves what comes without a caption.")
    slider_guidance: float = setting(
        3.0, "For prompts: how many times the difference of the two prompts is added at strength 1.",
        ge=0.1, le=100, step=0.5,
    )  # fmt: skip

    @property
    def texts(self) -> list[str]:
        """The prompts whose embeds are needed."""
        return [self.positive, self.negative, self.neutral] if self.slider == PROMPTS else []

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.slider == PROMPTS and not (self.positive.strip() and self.negative.strip()):
            yield "The slider learns from prompts, but one is empty; write what strength 1 and strength -1 lead to."
        if self.slider == PROMPTS and self.positive == self.negative:
            yield "The slider's positive and negative prompts are the same, so it would learn nothing; change one."
