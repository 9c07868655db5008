"""Captions and images through ComfyUI's encoders."""
