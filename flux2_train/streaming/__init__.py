"""What moves between host and device memory: weights in a ring, activations."""
