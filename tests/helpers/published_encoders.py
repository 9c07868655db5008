"""The layouts in which FLUX.2's text encoders and autoencoder are published; see ``published`` for the transformers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

from published import FP8, Entry


@dataclass(frozen=True)
class Text:
    """Sizes of a text encoder; heads have 128 features. ``head`` writes words, ``final`` is the norm before it."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    groups: int
    words: int
    qk_norms: bool = True
    head: bool = False
    final: bool = True


QWEN_4B = Text(2560, 36, 9728, 32, 8, 151936)
QWEN_8B = Text(4096, 36, 12288, 32, 8, 151936, head=True)
MISTRAL = Text(5120, 40, 32768, 32, 8, 131072, qk_norms=False, head=True)
MISTRAL_CUT = Text(5120, 30, 32768, 32, 8, 131072, qk_norms=False, final=False)  # as Comfy-Org publishes it


def shapes(size: Text) -> dict[str, tuple[int, ...]]:
    """Every tensor, by the names of Hugging Face."""
    h, q, kv = size.hidden, 128 * size.heads, 128 * size.groups
    found = {"model.embed_tokens.weight": (size.words, h)}
    for n in range(size.layers):
        layer = f"model.layers.{n}"
        found |= {f"{layer}.{which}_layernorm.weight": (h,) for which in ("input", "post_attention")}
        found |= {f"{layer}.mlp.{which}_proj.weight": (size.mlp, h) for which in ("gate", "up")}
        found |= {f"{layer}.mlp.down_proj.weight": (h, size.mlp)}
        found |= {f"{layer}.self_attn.{which}_proj.weight": (kv, h) for which in ("k", "v")}
        found |= {f"{layer}.self_attn.q_proj.weight": (q, h), f"{layer}.self_attn.o_proj.weight": (h, q)}
        if size.qk_norms:
            found |= {f"{layer}.self_attn.{which}_norm.weight": (128,) for which in ("q", "k")}
    if size.final:
        found["model.norm.weight"] = (h,)
    return found | ({"lm_head.weight": (size.words, h)} if size.head else {})


def sight(size: Text) -> dict[str, Entry]:
    """The part of Qwen3-VL 4B that sees pictures, for a language model of that width, by the names of Hugging Face."""
    wide, inner, merged, visual = 1024, 4096, 4096, "model.visual"
    found = {f"{visual}.patch_embed.proj.weight": (wide, 3, 2, 16, 16), f"{visual}.patch_embed.proj.bias": (wide,)}
    found[f"{visual}.pos_embed.weight"] = (2304, wide)

    def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    for n in range(24):
        block = f"{visual}.blocks.{n}"
        found |= {f"{block}.norm{k}.{what}": (wide,) for k in (1, 2) for what in ("weight", "bias")}
        found |= linear(f"{block}.attn.qkv", 3 * wide, wide) | linear(f"{block}.attn.proj", wide, wide)
        found |= linear(f"{block}.mlp.linear_fc1", inner, wide) | linear(f"{block}.mlp.linear_fc2", wide, inner)
    mergers = {f"{visual}.merger": wide} | {f"{visual}.deepstack_merger_list.{n}": merged for n in range(3)}
    for merger, norm in mergers.items():
        found |= {f"{merger}.norm.{what}": (norm,) for what in ("weight", "bias")}
        found |= linear(f"{merger}.linear_fc1", merged, merged) | linear(f"{merger}.linear_fc2", size.hidden, merged)
    return {name: ("BF16", shape) for name, shape in found.items()}


def every_matrix(layer: str) -> bool:
    return layer.endswith("_proj")


def but_the_first_layer(layer: str) -> bool:
    return layer.endswith("_proj") and ".layers.0." not in layer


def headers_of(
    size: Text, which: Callable[[str], bool] | None = None, by_tensor: bool = False, tekken: bytes = b"",
    renamed: Callable[[str], str] = str,
) -> tuple[dict[str, Entry], dict[str, str], dict[str, bytes]]:  # fmt: skip
    """The tensors of a file, its metadata, and the contents of the tensors that hold text.

    ``which`` layers are fp8 with a scale each; the header says so, or (``by_tensor``) a tensor beside each layer.
    """
    entries, texts, layers = {}, {"tekken_model": tekken} if tekken else {}, {}
    for key, shape in shapes(size).items():
        layer, name = key.removesuffix(".weight"), renamed(key)
        if which is None or not which(layer):
            entries[name] = ("BF16", shape)
            continue
        entries |= {name: ("F8_E4M3", shape), f"{renamed(layer)}.weight_scale": ("F32", ())}
        layers[renamed(layer)] = {"format": FP8}
        if by_tensor:
            texts[f"{renamed(layer)}.comfy_quant"] = json.dumps({"format": FP8}).encode()
    entries |= {name: ("U8", (len(text),)) for name, text in texts.items()}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return entries, metadata if layers and not by_tensor else {}, texts


def parts_of(entries: dict[str, Entry], parts: int) -> dict[str, dict[str, Entry]]:
    """The tensors of each file of a split model, by the file's name."""
    names = list(entries)
    return {
        f"model-{n + 1:05d}-of-{parts:05d}.safetensors": {name: entries[name] for name in names[n::parts]}
        for n in range(parts)
    }


def tekken() -> bytes:
    """A tokenizer in Mistral's form: its special tokens, and the 256 bytes."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
               "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
               "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]  # fmt: skip
    return json.dumps({
        "config": {"default_vocab_size": len(special) + 256, "default_num_special_tokens": len(special)},
        "special_tokens": [{"rank": n, "token_str": text, "is_control": True} for n, text in enumerate(special)],
        "vocab": [
            {"rank": n, "token_bytes": base64.b64encode(bytes([n])).decode(), "token_str": None} for n in range(256)
        ],
    }).encode()  # fmt: skip


def autoencoder(quant_inside: bool = False) -> dict[str, Entry]:
    """FLUX.2's autoencoder by Black Forest Labs' names.

    ``quant_inside``: the two 1x1 convolutions are parts of encoder and decoder, as in their own code.
    """
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, width: int = 3) -> None:
        found.update({f"{name}.weight": (out, into, width, width), f"{name}.bias": (out,)})

    def norm(name: str, features: int) -> None:
        found.update({f"{name}.weight": (features,), f"{name}.bias": (features,)})

    def block(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into), conv(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out), conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def middle(name: str) -> None:
        block(f"{name}.block_1", 512, 512), block(f"{name}.block_2", 512, 512), norm(f"{name}.attn_1.norm", 512)
        for each in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{each}", 512, 512, 1)

    widths = (128, 256, 512, 512)
    conv("encoder.conv_in", 128, 3), middle("encoder.mid"), norm("encoder.norm_out", 512)
    conv("encoder.conv_out", 64, 512)
    for level, width in enumerate(widths):
        before = widths[max(level - 1, 0)]
        for number in range(2):
            block(f"encoder.down.{level}.block.{number}", width if number else before, width)
        if level < 3:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    conv("decoder.conv_in", 512, 32), middle("decoder.mid"), norm("decoder.norm_out", 128)
    conv("decoder.conv_out", 3, 128)
    for level, width in enumerate(widths):
        before = widths[min(level + 1, 3)]
        for number in range(3):
            block(f"decoder.up.{level}.block.{number}", width if number else before, width)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    conv("encoder.quant_conv" if quant_inside else "quant_conv", 64, 64, 1)
    conv("decoder.post_quant_conv" if quant_inside else "post_quant_conv", 32, 32, 1)
    entries = {name: ("F32", shape) for name, shape in found.items()}
    statistics = {"bn.running_mean": ("F32", (128,)), "bn.running_var": ("F32", (128,))}
    return entries | statistics | {"bn.num_batches_tracked": ("I64", ())}


def autoencoder_in_diffusers() -> dict[str, Entry]:
    """The same as diffusers saves it, from its own class."""
    import torch
    from diffusers import AutoencoderKLFlux2

    with torch.device("meta"):
        state = AutoencoderKLFlux2().state_dict()
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    return {name: (kinds[value.dtype], tuple(value.shape)) for name, value in state.items()}
