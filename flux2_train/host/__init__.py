"""The only room that touches ComfyUI internals. A new ComfyUI version changes files here and nowhere else."""
