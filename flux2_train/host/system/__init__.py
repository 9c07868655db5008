"""ComfyUI started as a library, its devices and memory, and this computer."""
