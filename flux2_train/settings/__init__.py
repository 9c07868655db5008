"""Everything a user can set, declared once: type, choices, limits, default, and one help text."""
