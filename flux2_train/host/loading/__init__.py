"""Model files as ComfyUI's own objects: finding, reading, quantising and loading them."""
