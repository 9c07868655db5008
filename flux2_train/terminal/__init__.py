"""What the nodes do, from a terminal: one module per command, with ComfyUI as a library."""
