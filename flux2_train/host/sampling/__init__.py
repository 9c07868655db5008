"""Painting pictures with FLUX.2, with the sampling that it was made for."""
