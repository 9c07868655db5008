"""Sizes of nano's text encoder, by the names of a Qwen3 configuration."""

VOCAB = 151936
HIDDEN = 128
INTERMEDIATE = 256
LAYERS = 28
CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
