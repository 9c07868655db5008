"""A run's LoRA made ready for others: a folder with the file, a model card and pictures, and its way to a hub."""
