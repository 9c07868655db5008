"""What a trainer does between its steps: nothing, unless a run asks for more (``evaluate.evaluation``)."""

from __future__ import annotations

from collections.abc import Iterator

from ..events import Event


class BetweenSteps:
    """Looks at the adapters as they are after some steps. Nothing here changes what is learned."""

    def before(self) -> Iterator[Event]:
        """What has to be done before the model is borrowed."""
        yield from ()

    def measure(self, borrowed, step: int) -> Iterator[Event]:
        """The losses that are due after ``step`` steps."""
        yield from ()

    def paint(self, borrowed, step: int) -> Iterator[Event]:
        """The previews that are due after ``step`` steps."""
        yield from ()
