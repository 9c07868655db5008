"""A run's life: its folder, checkpoints, results and logs."""
