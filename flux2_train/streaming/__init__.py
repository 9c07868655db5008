"""What moves between host and device memory: weights through a ring of buffers, and activations."""
