"""`nano`: a FLUX.2 in small, generated from a seed, so that every job runs anywhere without a download.

Same classes and keys as the released flavours, only sizes differ. Weights are uniform numbers drawn with
Philox (its raw output is fixed by numpy for all versions), so every machine gets the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

HIDDEN, DOUBLE_BLOCKS, SINGLE_BLOCKS = 256, 2, 6
HEAD_DIM, CHANNELS = 128, 128
TEXT_HIDDEN, TEXT_MLP, TEXT_LAYERS, VOCABULARY = 128, 256, 28, 151936
CONTEXT = 3 * TEXT_HIDDEN
RESOLUTION = 128
TRANSFORMER, TEXT_ENCODER, VAE = (f"flux2-nano-{part}.safetensors" for part in ("transformer", "text-encoder", "vae"))

TEXT_ENCODER_CONFIG = {
    "hidden_size": TEXT_HIDDEN,
    "intermediate_size": TEXT_MLP,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
_WIDTHS, _VAE_LATENT = (32, 64, 64, 64), 32
VAE_CONFIG = {
    "embed_dim": _VAE_LATENT,
    "ddconfig": {
        "double_z": True,
        "z_channels": _VAE_LATENT,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": _WIDTHS[0],
        "ch_mult": [width // _WIDTHS[0] for width in _WIDTHS],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
        "batch_norm_latent": True,
    },
}

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def uniform(name: str, shape: tuple[int, ...], std: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers of the given standard deviation, a pure function of ``name`` and ``shape``."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    raw = np.random.Philox(key=key).random_raw(-(-math.prod(shape) // 4)).view(np.int16)[: math.prod(shape)]
    # One rounding of an exact product: the same bits on every machine.
    values = raw.astype(np.float32) * np.float32(std * math.sqrt(3.0) / 32768.0)
    return torch.from_numpy(values.reshape(shape)).to(dtype)


def _fill(shapes: Shapes, gain: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Norm scales one, biases zero, everything else uniform with ``std = gain / sqrt(fan in)``."""
    weights = {}
    for name, shape in shapes:
        if name.endswith("bias"):
            weights[name] = torch.zeros(shape, dtype=dtype)
        elif len(shape) == 1:
            weights[name] = torch.ones(shape, dtype=dtype)
        else:
            weights[name] = uniform(name, shape, gain / math.sqrt(math.prod(shape[1:])), dtype)
    return weights


def _transformer_shapes() -> Shapes:
    mlp = 3 * HIDDEN
    yield "img_in.weight", (HIDDEN, CHANNELS)
    yield "txt_in.weight", (HIDDEN, CONTEXT)
    yield "time_in.in_layer.weight", (HIDDEN, 256)
    yield "time_in.out_layer.weight", (HIDDEN, HIDDEN)
    for stream in ("img", "txt"):
        yield f"double_stream_modulation_{stream}.lin.weight", (6 * HIDDEN, HIDDEN)
    yield "single_stream_modulation.lin.weight", (3 * HIDDEN, HIDDEN)
    for block in (f"double_blocks.{i}." for i in range(DOUBLE_BLOCKS)):
        for stream in ("img", "txt"):
            yield f"{block}{stream}_attn.qkv.weight", (3 * HIDDEN, HIDDEN)
            yield f"{block}{stream}_attn.proj.weight", (HIDDEN, HIDDEN)
            yield f"{block}{stream}_mlp.0.weight", (2 * mlp, HIDDEN)
            yield f"{block}{stream}_mlp.2.weight", (HIDDEN, mlp)
            for norm in ("query_norm", "key_norm"):
                yield f"{block}{stream}_attn.norm.{norm}.scale", (HEAD_DIM,)
    for block in (f"single_blocks.{i}." for i in range(SINGLE_BLOCKS)):
        yield f"{block}linear1.weight", (3 * HIDDEN + 2 * mlp, HIDDEN)
        yield f"{block}linear2.weight", (HIDDEN, HIDDEN + mlp)
        for norm in ("query_norm", "key_norm"):
            yield f"{block}norm.{norm}.scale", (HEAD_DIM,)
    yield "final_layer.adaLN_modulation.1.weight", (2 * HIDDEN, HIDDEN)
    yield "final_layer.linear.weight", (CHANNELS, HIDDEN)


def _text_encoder_shapes() -> Shapes:
    yield "model.embed_tokens.weight", (VOCABULARY, TEXT_HIDDEN)
    for layer in (f"model.layers.{i}." for i in range(TEXT_LAYERS)):
        for projection in ("q", "k", "v", "o"):
            yield f"{layer}self_attn.{projection}_proj.weight", (HEAD_DIM, TEXT_HIDDEN)
        for norm in ("self_attn.q_norm", "self_attn.k_norm"):
            yield f"{layer}{norm}.weight", (HEAD_DIM,)
        yield f"{layer}mlp.gate_proj.weight", (TEXT_MLP, TEXT_HIDDEN)
        yield f"{layer}mlp.up_proj.weight", (TEXT_MLP, TEXT_HIDDEN)
        yield f"{layer}mlp.down_proj.weight", (TEXT_HIDDEN, TEXT_MLP)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{norm}.weight", (TEXT_HIDDEN,)
    yield "model.norm.weight", (TEXT_HIDDEN,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _conv(name: str, into: int, out: int, size: int = 3) -> Shapes:
    yield f"{name}.weight", (out, into, size, size)
    yield f"{name}.bias", (out,)


def _residual(name: str, into: int, out: int) -> Shapes:
    yield from _norm(f"{name}.norm1", into)
    yield from _conv(f"{name}.conv1", into, out)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out)
    if into != out:
        yield from _conv(f"{name}.nin_shortcut", into, out, 1)


def _middle(name: str, width: int) -> Shapes:
    yield from _residual(f"{name}.block_1", width, width)
    yield from _norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.attn_1.{part}", width, width, 1)
    yield from _residual(f"{name}.block_2", width, width)


def _vae_shapes() -> Shapes:
    wide, levels = _WIDTHS[-1], len(_WIDTHS)
    yield from _conv("encoder.conv_in", 3, _WIDTHS[0])
    for level, width in enumerate(_WIDTHS):
        yield from _residual(f"encoder.down.{level}.block.0", _WIDTHS[max(level - 1, 0)], width)
        if level < levels - 1:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from _middle("encoder.mid", wide)
    yield from _norm("encoder.norm_out", wide)
    yield from _conv("encoder.conv_out", wide, 2 * _VAE_LATENT)
    yield from _conv("decoder.conv_in", _VAE_LATENT, wide)
    yield from _middle("decoder.mid", wide)
    for level, width in enumerate(_WIDTHS):
        yield from _residual(f"decoder.up.{level}.block.0", _WIDTHS[min(level + 1, levels - 1)], width)
        yield from _residual(f"decoder.up.{level}.block.1", width, width)
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from _norm("decoder.norm_out", _WIDTHS[0])
    yield from _conv("decoder.conv_out", _WIDTHS[0], 3)
    yield from _conv("quant_conv", 2 * _VAE_LATENT, 2 * _VAE_LATENT, 1)
    yield from _conv("post_quant_conv", _VAE_LATENT, _VAE_LATENT, 1)


def transformer() -> dict[str, Tensor]:
    """The transformer's state dict, bf16, 9.9 M parameters."""
    return _fill(_transformer_shapes(), dtype=torch.bfloat16)


def text_encoder() -> dict[str, Tensor]:
    """The text encoder's state dict, bf16, 24 M parameters; small residual branches keep the tokens apart."""
    return _fill(_text_encoder_shapes(), gain=0.5, dtype=torch.bfloat16)


def vae() -> dict[str, Tensor]:
    """The autoencoder's state dict, fp32, with unit batch-norm statistics."""
    weights = _fill(_vae_shapes())
    weights["bn.running_mean"] = torch.zeros(4 * _VAE_LATENT)
    weights["bn.running_var"] = torch.ones(4 * _VAE_LATENT)
    weights["bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return weights
