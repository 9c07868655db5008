"""A folder of jobs that wait for training, and what works through it."""
