"""Nodes that make data sets: from images of the graph, and captions for pictures that have none."""
