"""A run in one folder that goes on anywhere: on a machine that has the transformer and nothing else."""
