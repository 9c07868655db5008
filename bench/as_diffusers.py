"""A FLUX.2 transformer's weights under diffusers' names, and diffusers' own model around them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in": "time_guidance_embed.timestep_embedder",
    "guidance_in": "time_guidance_embed.guidance_embedder",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
    "in_layer": "linear_1",
    "out_layer": "linear_2",
    "lin": "linear",
}
_DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
_QKV = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_SINGLE = {
    "linear1": "attn.to_qkv_mlp_proj",
    "linear2": "attn.to_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}


def diffusers_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in diffusers' names; keys start at the transformer (``double_blocks. ...``, ``img_in. ...``).

    qkv is split in three, and the last modulation's halves trade places: shift and scale here, scale and shift there.
    """
    return {new: value for name, old in weights.items() for new, value in _renamed(name, old)}


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    layer = name.rpartition(".")[0]  # norms end in .weight or, in older files, in .scale; diffusers' all in .weight
    block = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", layer)
    if block is None:
        if layer == "final_layer.adaLN_modulation.1":
            value = torch.cat(value.chunk(2)[::-1])
        return [(f"{_outside(layer)}.weight", value)]
    kind, number, last = block.groups()
    if kind == "single":
        return [(f"single_transformer_blocks.{number}.{_SINGLE[last]}.weight", value)]
    names = _QKV[last] if last in _QKV else (_DOUBLE[last],)
    return [(f"transformer_blocks.{number}.{n}.weight", v) for n, v in zip(names, value.chunk(len(names)), strict=True)]


def _outside(layer: str) -> str:
    if layer in _OUTSIDE:
        return _OUTSIDE[layer]
    parent, _, last = layer.rpartition(".")
    return f"{_OUTSIDE.get(parent, parent)}.{_OUTSIDE[last]}"


def diffusers_transformer(weights: dict[str, Tensor]):
    """diffusers' ``Flux2Transformer2DModel`` with these weights (ComfyUI's names), its sizes read off them."""
    from diffusers import Flux2Transformer2DModel

    def blocks(kind: str) -> int:
        return len({name.split(".")[1] for name in weights if name.startswith(f"{kind}_blocks.")})

    hidden, channels = weights["img_in.weight"].shape
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            in_channels=channels, num_layers=blocks("double"), num_single_layers=blocks("single"),
            num_attention_heads=hidden // 128, joint_attention_dim=weights["txt_in.weight"].shape[1],
            guidance_embeds="guidance_in.in_layer.weight" in weights,
        )  # fmt: skip
    model.load_state_dict(diffusers_weights(weights), assign=True)
    return model.requires_grad_(False)
