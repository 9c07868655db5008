"""Files beside the training: where they cannot be written, that is told once, and the run goes on without them."""

from __future__ import annotations

from collections.abc import Callable

from ..events import Event, Warned

Listen = Callable[[Event], None]


class Sparing:
    """A listener that never ends a run because of the disk: the first time ``writer`` fails, ``tell`` is warned.

    ``what`` names its files. Later events are tried again: somebody may have made room.
    """

    def __init__(self, writer: Listen, what: str, tell: Listen):
        self.writer, self.what, self.tell, self.told = writer, what, tell, False

    def __call__(self, event: Event) -> None:
        self._attempt(lambda: self.writer(event))

    def close(self) -> None:
        """Close the writer."""
        self._attempt(self.writer.close)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self.told:
                self.told = True
                self.tell(Warned(f"{self.what} could not be written ({error}); the run goes on without. Make room or "
                                 "make the run's folder writable."))  # fmt: skip
