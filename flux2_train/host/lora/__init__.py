"""LoRAs on ComfyUI's models: applying them, certifying saved files, merging and converting files."""
