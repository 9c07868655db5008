"""The one exception whose text is written for the person at the graph."""


class UserError(ValueError):
    """Something the user can mend. The message says what came, what was expected and what to do next."""
