"""LoRAs on ComfyUI's models: applied, proved, merged."""
