"""The exception whose text is written for the user."""


class UserError(ValueError):
    """A mistake that the user can correct. The message says what is wrong, what was expected and what to do next."""
