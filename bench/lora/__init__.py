"""LoRA files between programs: each writes one with its own code, each reads it with its own; ``bench.lora_matrix``."""
