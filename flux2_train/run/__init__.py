"""One step, one loop, and what is told while it runs."""
