"""How much memory and time a run takes, and how it is laid out in memory: arithmetic without a model."""
