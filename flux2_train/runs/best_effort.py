"""Best-effort files beside the training: on OSError warn once and go on."""

from __future__ import annotations

from collections.abc import Callable

from ..bounded import reason
from ..events import Event, Warned

Listen = Callable[[Event], None]


class BestEffort:
    """A listener that passes events to ``writer`` and never ends a run because of the disk.

    The first time that ``writer`` raises OSError, ``warn`` gets one ``Warned`` that calls its files ``what``. Later
    events are still passed on: somebody may have made room.
    """

    def __init__(self, writer: Listen, what: str, warn: Listen):
        self.writer, self.what, self.warn, self.has_warned = writer, what, warn, False

    def __call__(self, event: Event) -> None:
        self._attempt(lambda: self.writer(event))

    def close(self) -> None:
        """Close the writer."""
        self._attempt(self.writer.close)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self.has_warned:
                self.has_warned = True
                self.warn(Warned(could_not(self.what, error)))


def could_not(what: str, error: OSError) -> str:
    """The sentence on files beside the training that could not be written."""
    why = reason(error)
    return f"{what} could not be written ({why}); the run goes on without. Make room or make the run's folder writable."
