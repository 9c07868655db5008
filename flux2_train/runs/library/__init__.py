"""All runs of the folder of runs: listed, compared, removed."""
