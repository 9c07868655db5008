"""nano's text encoder: a model of Qwen3's form whose weights are computed, not trained and not stored.

Every weight is an odd integer of at most 8 bits times a power of two, so it is exact in bf16 and the same on every
machine and torch version. Random matrices keep words apart. The attention is built by hand: channel 0 of every
embedding is a constant, and queries and keys read only that channel, so attention depends on distance alone and
averages the last few words. Layers 0-8 keep mostly the word itself, 9-17 add its phrase, 18-26 its clause. From the
encoder's output (layers 9, 18, 27) the transformer then knows which colour belongs to which shape.
"""

import hashlib

import numpy as np
import torch

from .sizes import HIDDEN, INTERMEDIATE, LAYERS, VOCAB

SHA256 = "79334f43ac4a6ab8ae995c664dee8b3b1bafb27ae99f6f58e0e57c815ace7a8a"

_WINDOW_WIDTH = 8  # rotary pairs used by a window; its first pair sets the reach: 2 sees ~2 words, 6 ~4, 10 ~8
_WINDOW_START = (2, 6, 10)
_CONTEXT_EXPONENT = (14, 11, 11)  # output projection scale 2^-n of the three layer groups


def random_bytes(stream: int, count: int) -> np.ndarray:
    """`count` int8 values of the splitmix64 sequence number `stream` (Steele, Lea and Flood 2014), little-endian."""
    words = -(-count // 8)
    with np.errstate(over="ignore"):
        z = (np.arange(1, words + 1, dtype=np.uint64) + np.uint64(stream << 40)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z.astype("<u8").view(np.int8)[:count]


def random_matrix(stream: int, rows: int, columns: int, exponent: int) -> torch.Tensor:
    """(rows, columns) bf16 of odd integers in [-255, 255] times 2^-exponent; exact, no rounding anywhere."""
    values = torch.from_numpy(random_bytes(stream, rows * columns)).to(torch.bfloat16)
    return values.mul_(2).add_(1).mul_(2.0**-exponent).view(rows, columns)


def window_projection(group: int) -> torch.Tensor:
    """(128, 128) bf16 query and key weight: the constant channel 0 onto a few rotary pairs."""
    weight = torch.zeros(HIDDEN, HIDDEN, dtype=torch.bfloat16)
    start = _WINDOW_START[group]
    weight[start : start + _WINDOW_WIDTH, 0] = 1.0
    return weight


def generate_text_encoder() -> dict[str, torch.Tensor]:
    """State dict (bf16) with the keys of a Qwen3-4B text encoder file, at nano's sizes (CONFIG)."""
    embedding = random_matrix(1, VOCAB, HIDDEN, 7)
    embedding[:, 0] = 1.0
    weights = {"model.embed_tokens.weight": embedding}
    for layer in range(LAYERS):
        weights.update(_layer(f"model.layers.{layer}.", layer, min(layer // 9, 2)))
    weights["model.norm.weight"] = _ones()
    return weights


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """sha256 over names and bf16 bytes, in sorted order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.int16).numpy().astype("<i2", copy=False).tobytes())
    return digest.hexdigest()


def _layer(prefix: str, layer: int, group: int) -> dict[str, torch.Tensor]:
    stream = 16 * (layer + 1)
    window = window_projection(group)
    out = {
        "self_attn.q_proj.weight": window,
        "self_attn.k_proj.weight": window.clone(),
        "self_attn.v_proj.weight": random_matrix(stream + 1, HIDDEN, HIDDEN, 11),
        "self_attn.o_proj.weight": random_matrix(stream + 2, HIDDEN, HIDDEN, _CONTEXT_EXPONENT[group]),
        "mlp.gate_proj.weight": random_matrix(stream + 3, INTERMEDIATE, HIDDEN, 11),
        "mlp.up_proj.weight": random_matrix(stream + 4, INTERMEDIATE, HIDDEN, 11),
        "mlp.down_proj.weight": random_matrix(stream + 5, HIDDEN, INTERMEDIATE, 13),
        "self_attn.q_norm.weight": _ones(),
        "self_attn.k_norm.weight": _ones(),
        "input_layernorm.weight": _ones(),
        "post_attention_layernorm.weight": _ones(),
    }
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        out[name][0] = 0.0  # nothing may write to the constant channel
    return {prefix + name: weight for name, weight in out.items()}


def _ones() -> torch.Tensor:
    return torch.ones(HIDDEN, dtype=torch.bfloat16)
