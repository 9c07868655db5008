"""The exception whose text is written for the user."""

from .names import escaped

LONGEST = 4000  # characters of a message


class UserError(ValueError):
    """A mistake that the user can correct. The message says what is wrong, what was expected and what to do next.

    What a foreign file puts into it can neither control a terminal nor make it longer than LONGEST characters: its
    middle is then left out.
    """

    def __init__(self, text: str = ""):
        if len(text) > LONGEST:
            text = f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 4 + 5 :]}"
        super().__init__("\n".join(map(escaped, text.split("\n"))))


class Paused(Exception):
    """A run has ended after a step because somebody paused it. ``saved``: whether its checkpoint is on disk."""

    def __init__(self, step: int, saved: bool):
        self.step, self.saved = step, saved
        goes_on = "Go on queues the same graph" if saved else "its checkpoint could not be written"
        super().__init__(f"Paused after step {step}; {goes_on}.")
