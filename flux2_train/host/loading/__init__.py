"""Model files as ComfyUI's own objects: found, read, quantised, loaded."""
