"""LoRA Trainer with more than one process."""
