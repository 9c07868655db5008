"""Painting as FLUX.2 is meant to be sampled."""
