"""What can be asked of a run while it trains, and what a job says was changed in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .base import Settings, info, settings
from .previews import MOST_PROMPTS
from .sentences import bounds
from .training import TrainingSettings

STOP, PAUSE, SAVE, PREVIEW, CHANGE = ASKS = ("stop", "pause", "save", "preview", "change")
LONGEST_PROMPT = 10_000  # characters


@settings
class Change(Settings):
    """New values from the step after ``after`` on; what is ``None`` stays as it is."""

    after: int = 0
    learning_rate: float | None = None
    steps: int | None = None
    prompts: tuple[str, ...] | None = None

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.after < 0:
            yield f"after is {self.after}; it must be a number of steps."
        for name, least in (("learning_rate", 0), ("steps", 1)):
            value, most = getattr(self, name), bounds(info(TrainingSettings, name))[1]
            if value is not None and not least <= value <= most:
                yield f"{name} is {value:g}; it must lie between {least} and {most:g}."
        if self.prompts is None:
            return
        if not 1 <= len(self.prompts) <= MOST_PROMPTS or not all(text.strip() for text in self.prompts):
            yield f"There are {len(self.prompts)} prompts; give 1 to {MOST_PROMPTS}, none of them empty."
        if any(len(text) > LONGEST_PROMPT for text in self.prompts):
            yield f"A prompt is longer than {LONGEST_PROMPT} characters; write a shorter one."

    @property
    def is_empty(self) -> bool:
        """Whether nothing is changed."""
        return self.learning_rate is None and self.steps is None and self.prompts is None


@settings
class Request(Settings):
    """One thing that is asked of a run. ``change`` holds the new values where ``ask`` is ``change``."""

    ask: Literal[ASKS]
    change: Change = Change()

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if (self.ask == CHANGE) == self.change.is_empty:
            yield "A change needs at least one of learning_rate, steps and prompts; nothing else takes them."
