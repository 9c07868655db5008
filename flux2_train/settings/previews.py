"""What is shown and measured during a run: the nodes Validation and Validation Loss.

A preview is a picture of a prompt; the validation loss is a number at fixed noise. Neither changes what is learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Strict

from ..geometry import MULTIPLE
from .base import RARE, Settings, setting, settings
from .model import ModelSettings

MOST_PROMPTS = 64
FIXED, WALKING = "fixed", "walking"
PIXELS = "Pixels; nano paints at 128."
FLAGS = {"w": "width", "h": "height", "d": "seed", "s": "steps"}  # behind a prompt, as musubi-tuner has them
OPTION = re.compile(r"(.*\S)\s+--([whds])\s+(\d{1,20})", re.DOTALL)
OWN = {"width": (MULTIPLE, 8192), "height": (MULTIPLE, 8192), "seed": (0, 2**64 - 1), "steps": (1, 200)}
SIDE = {"ge": MULTIPLE, "le": 8192, "step": MULTIPLE}


@settings
class Prompt(Settings):
    """A text to paint. ``strength`` of the LoRA is that of all previews where it is ``None``.

    ``name`` labels its pictures; ``references`` are image files to edit or to take things from. ``width``, ``height``,
    ``seed`` and sampling ``steps`` are those of all previews where they are ``None``.
    """

    text: str
    name: str = ""
    strength: Annotated[float, Strict()] | None = None
    references: tuple[Path, ...] = ()
    width: Annotated[int, Strict()] | None = None
    height: Annotated[int, Strict()] | None = None
    seed: Annotated[int, Strict()] | None = None
    steps: Annotated[int, Strict()] | None = None

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if not self.text.strip():
            yield "A prompt is empty; write what to paint."
        if self.strength is not None and not -10 <= self.strength <= 10:
            yield f"The strength of the prompt {self.text[:40]!r} is {self.strength:g}; it must lie between -10 and 10."

        for name, (least, most) in OWN.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                yield f"The {name} of a prompt is {value}; it must be {least} to {most}."
            elif value is not None and name in ("width", "height") and value % MULTIPLE:
                yield f"The {name} of a prompt is {value}; it must be a multiple of {MULTIPLE}."

    @property
    def label(self) -> str:
        """What its pictures are called."""
        return self.name or self.text

    @property
    def line(self) -> str:
        """The prompt as one line of text, with the numbers of its own behind it; inverse of ``from_line``."""
        own = [f" --{flag} {getattr(self, name)}" for flag, name in FLAGS.items() if getattr(self, name) is not None]
        return self.text + "".join(own)


def from_line(line: str) -> Prompt:
    """A prompt from a line such as ``a red fox --w 512 --h 768 --d 7 --s 20``: width, height, seed, steps.

    Raises UserError for a number that it cannot have.
    """
    text, own = line.strip(), {}
    while found := OPTION.fullmatch(text):
        text, own[FLAGS[found[2]]] = found[1].rstrip(), int(found[3])
    return Prompt(text, **own)


def from_lines(text: str) -> tuple[Prompt, ...]:
    """A prompt from every line that is not blank."""
    return tuple(from_line(line) for line in text.splitlines() if line.strip())


def _prompts(value: Any) -> Any:
    return from_lines(value) if isinstance(value, str) else value


@settings
class PreviewSettings(Settings):
    """What is painted while training, how, and how often. ``model``, if set, paints instead of the trained model."""

    prompts: Annotated[tuple[Prompt, ...], BeforeValidator(_prompts)] = setting(
        (),
        "What to paint, one prompt per line; include your trigger word in some. A prompt's own width, height, seed and "
        "steps stand behind it: a red fox --w 512 --h 768 --d 7 --s 20.",
        multiline=True,
    )
    negative: str = setting(
        "", "What to steer away from. Acts only where guidance mixes two predictions (klein base).",
        multiline=True, **RARE,
    )  # fmt: skip
    width: int = setting(1024, PIXELS, **SIDE)
    height: int = setting(1024, PIXELS, **SIDE)
    every: int = setting(
        250,
        "Paint after every so many training steps, and always at the end. 0 paints at the end, and at the start if "
        "that is on.",
        ge=0, le=1_000_000,
    )  # fmt: skip
    at_start: bool = setting(
        True, "Also paint before the first step, which shows at once whether prompts and size are right."
    )
    seed: int = setting(
        42, "The starting noise of the first prompt, the same every time, so that pictures compare.",
        ge=0, le=2**64 - 1, control=False,
    )  # fmt: skip
    seeds: Literal["fixed", "walking"] = setting(
        FIXED, "fixed gives every prompt the same noise; walking gives each the next seed.", **RARE
    )
    steps: int = setting(
        0, "Sampling steps. 0 takes what the model was made for: 20 for base and dev, 4 distilled.",
        ge=0, le=200, **RARE,
    )  # fmt: skip
    guidance: float = setting(
        0.0,
        "How strictly the prompt is followed. 0 takes the flavour's own, 4. Distilled klein has none and ignores it.",
        ge=0, le=30, step=0.1, **RARE,
    )  # fmt: skip
    sampler: str = setting("euler", "The solver. euler is what FLUX.2 was made with.", **RARE)
    strength: float = setting(
        1.0,
        "How strongly the LoRA acts in the pictures, as in LoRA Apply; a prompt library may say otherwise for single "
        "prompts.",
        ge=-10, le=10, step=0.05, **RARE,
    )  # fmt: skip
    resize_references: bool = setting(
        True,
        "Scale reference images down to a megapixel (never up). Off keeps their size, which costs memory and time.",
        **RARE,
    )
    model: ModelSettings | None = None
    copies: bool = setting(
        True,
        "Say which training picture each preview is nearest to, and warn if it is a copy of one. Costs no prediction.",
        **RARE,
    )

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if not 1 <= len(self.prompts) <= MOST_PROMPTS:
            yield (
                f"Validation has {len(self.prompts)} prompts; it needs at least one and takes {MOST_PROMPTS}. Write "
                "one per line, or name a prompt file."
            )
        if self.width % MULTIPLE or self.height % MULTIPLE:
            yield f"The size of previews is {self.width}x{self.height}; both must be multiples of 16."

    @property
    def texts(self) -> list[str]:
        """Every text to encode ahead."""
        return list(dict.fromkeys([*(prompt.text for prompt in self.prompts), self.negative]))

    def is_due(self, step: int, total: int) -> bool:
        """Whether to paint after ``step`` of ``total`` steps."""
        if step == 0:
            return self.at_start
        return step == total or bool(self.every and step % self.every == 0)

    def seed_of(self, number: int, prompt: Prompt | None = None) -> int:
        """The seed of the prompt with that index, which is ``prompt`` where a run has got more prompts than these."""
        own = (prompt or self.prompts[number]).seed
        if own is not None:
            return own
        return (self.seed + number * (self.seeds == WALKING)) % 2**64

    def size_of(self, prompt: Prompt) -> tuple[int, int]:
        """(width, height) of that prompt's pictures."""
        return prompt.width or self.width, prompt.height or self.height

    @property
    def largest(self) -> tuple[int, int]:
        """(width, height) of the picture with the most pixels."""
        return max(map(self.size_of, self.prompts), key=lambda size: size[0] * size[1])

    def strength_of(self, prompt: Prompt) -> float:
        """How strongly the LoRA acts in that prompt's pictures."""
        return self.strength if prompt.strength is None else prompt.strength


@settings
class ValidationLossSettings(Settings):
    """On which images the loss at fixed noise is measured, and every how many steps."""

    share: float = setting(
        0.0,
        "Without held-out images wired in: this share of the data set is kept out of training for it. 0.1 is usual; 0 "
        "measures on training images, as many as validation_items says.",
        ge=0, le=0.9, step=0.05,
    )  # fmt: skip
    seed: int = setting(
        0, "Draws the images of the share: the same seed keeps the same images out.",
        ge=0, le=2**63 - 1, advanced=True, control=False,
    )  # fmt: skip
    every: int = setting(
        100, "Measure after every so many steps, at the start and at the end. 0 is start and end only.",
        ge=0, le=1_000_000,
    )  # fmt: skip
    per_image: bool = setting(
        False,
        "Measure every image alone at the start and the end, ten predictions each, and name those that stand out in "
        "images.csv and images.png of the run's folder.",
    )
    per_image_every: int = setting(
        0, "Also measure every image alone after every so many steps. 0 is start and end only.",
        ge=0, le=1_000_000, advanced=True,
    )  # fmt: skip
    selectivity: bool = setting(
        True,
        "With each of these measurements, also say how many times as much the LoRA changes with the trigger as without "
        "it, on up to four images. Training is the same with it on or off.",
    )

    def is_due(self, step: int, total: int) -> bool:
        """Whether to measure the validation loss after ``step`` of ``total`` steps."""
        return _is_due(self.every, step, total)

    def per_image_is_due(self, step: int, total: int) -> bool:
        """Whether to measure every image alone after ``step`` of ``total`` steps."""
        return self.per_image and _is_due(self.per_image_every, step, total)


def _is_due(every: int, step: int, total: int) -> bool:
    return step in (0, total) or bool(every and step % every == 0)
