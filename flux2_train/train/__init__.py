"""One step and one loop."""
