"""What is looked at while a run goes on: prompts that are painted, and how the loss on held-out images is measured.

Nothing in ``ValidationConfig`` changes what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .flavours import Flux2Files
from .section import INF, Section, ranges

MOST_PROMPTS = 64


@dataclass(frozen=True)
class Prompt(Section):
    """A text to paint. ``strength`` of the LoRA is the validation's own where it is ``None``.

    ``name`` labels its pictures; ``references`` are image files to edit or take things from.
    """

    text: str
    name: str = ""
    strength: float | None = None
    references: tuple[Path, ...] = ()

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        if not self.text.strip():
            yield "A validation prompt is empty; write what to paint."
        if self.strength is not None and not -10 <= self.strength <= 10:
            yield f"The strength of the prompt {self.text[:40]!r} is {self.strength:g}; it must lie between -10 and 10."

    @property
    def label(self) -> str:
        """What its pictures are called."""
        return self.name or self.text


@dataclass(frozen=True)
class ValidationConfig(Section):
    """Previews: what is painted while training, how, and every how many steps (0: at the start and the end only).

    ``width`` and ``height`` in pixels. 0 of ``steps`` and ``guidance`` ask for what the model was made for. With
    ``walk_seed`` every prompt gets the next seed, else all get the same. ``strength`` is the LoRA's. ``model`` is the
    second model that paints instead of the trained one, as Load FLUX.2 names it.
    """

    prompts: tuple[Prompt, ...]
    negative: str = ""
    width: int = 1024
    height: int = 1024
    steps: int = 0
    guidance: float = 0.0
    sampler: str = "euler"
    seed: int = 0
    walk_seed: bool = False
    strength: float = 1.0
    every: int = 250
    at_start: bool = True
    resize_references: bool = True
    model: Flux2Files | None = None

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        if not 1 <= len(self.prompts) <= MOST_PROMPTS:
            yield (
                f"Validation has {len(self.prompts)} prompts; it needs at least one and takes {MOST_PROMPTS}. Write "
                "one per line, or name a prompt file."
            )
        yield from ranges(self, width=(16, 8192), height=(16, 8192), steps=(0, 200), guidance=(0, 30),
                          seed=(0, 2**64 - 1), strength=(-10, 10), every=(0, INF))  # fmt: skip
        if self.width % 16 or self.height % 16:
            yield f"The size of validation pictures is {self.width}x{self.height}; both must be multiples of 16."

    @property
    def texts(self) -> list[str]:
        """Every text to encode ahead."""
        return list(dict.fromkeys([*(prompt.text for prompt in self.prompts), self.negative]))

    def is_due(self, step: int, total: int) -> bool:
        """Whether to paint after ``step`` of ``total`` steps."""
        if step == 0:
            return self.at_start
        return step == total or bool(self.every and step % self.every == 0)

    def seed_of(self, number: int) -> int:
        """The seed of the prompt with that index."""
        return (self.seed + number * self.walk_seed) % 2**64

    def strength_of(self, prompt: Prompt) -> float:
        """How strongly the LoRA acts in that prompt's pictures."""
        return self.strength if prompt.strength is None else prompt.strength


@dataclass(frozen=True)
class HeldOutConfig(Section):
    """On which images the loss is measured, and every how many steps (0: at the start and the end only).

    ``share`` of the data set is kept out of training for it, drawn from ``seed``. ``per_image`` also measures every
    image alone, at the start and the end and, above 0, every ``per_image_every`` steps.
    """

    share: float = 0.0
    seed: int = 0
    every: int = 0
    per_image: bool = False
    per_image_every: int = 0

    def problems(self) -> Iterator[str]:
        """See ``Section``."""
        yield from ranges(self, share=(0, 0.9), every=(0, INF), per_image_every=(0, INF))

    def is_due(self, step: int, total: int) -> bool:
        """Whether to measure the validation loss after ``step`` of ``total`` steps."""
        return _is_due(self.every, step, total)

    def per_image_is_due(self, step: int, total: int) -> bool:
        """Whether to measure every image alone after ``step`` of ``total`` steps."""
        return self.per_image and _is_due(self.per_image_every, step, total)


def _is_due(every: int, step: int, total: int) -> bool:
    return step in (0, total) or bool(every and step % every == 0)
