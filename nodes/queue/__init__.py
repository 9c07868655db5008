"""The queue of jobs, worked through by ComfyUI's server."""
