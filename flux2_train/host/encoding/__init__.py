"""Encoding captions and images with ComfyUI's own encoders."""
