"""Starting ComfyUI as a library, its memory and devices, and facts about this computer."""
