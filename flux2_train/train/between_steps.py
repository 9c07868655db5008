"""What a trainer does between its steps: nothing, unless a run replaces it (by ``evaluate.evaluation``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..events import Event
from ..host.graph_types import ModelPatcher


class BetweenSteps:
    """Measures or paints with the adapters after some steps. Nothing here changes what is learned."""

    def before(self) -> Iterator[Event]:
        """Work to do before the model is borrowed."""
        yield from ()

    def measure(self, borrowed: ModelPatcher, step: int) -> Iterator[Event]:
        """The losses that are due after ``step`` steps."""
        yield from ()

    def paint(self, borrowed: ModelPatcher, step: int, asked: bool = False) -> Iterator[Event]:
        """The previews that are due after ``step`` steps, or were ``asked`` for."""
        yield from ()

    def choose_prompts(self, chosen: Sequence[tuple[str, ...]]) -> None:
        """Paint the last of ``chosen`` from now on. They are all that were ever chosen, in their order."""
