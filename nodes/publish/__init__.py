"""A run's LoRA made ready for others, from the graph."""
