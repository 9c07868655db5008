"""SimpleTuner: its files, its keys, and how single values become ours."""
