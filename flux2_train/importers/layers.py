"""Layers by diffusers' names, which OneTrainer and diffusers' own scripts use, as patterns of ours."""

from __future__ import annotations

from collections.abc import Iterable

from .draft import NotHere

QKV, TEXT_QKV = "double_blocks.*.img_attn.qkv", "double_blocks.*.txt_attn.qkv"
# The ends of names. q, k and v are one Linear here; so are the attention's and the MLP's in single blocks.
OURS = {
    "to_q": QKV, "to_k": QKV, "to_v": QKV, "to_out.0": "double_blocks.*.img_attn.proj",
    "add_q_proj": TEXT_QKV, "add_k_proj": TEXT_QKV, "add_v_proj": TEXT_QKV,
    "to_add_out": "double_blocks.*.txt_attn.proj",
    "ff.linear_in": "double_blocks.*.img_mlp.0", "ff.linear_out": "double_blocks.*.img_mlp.2",
    "ff_context.linear_in": "double_blocks.*.txt_mlp.0", "ff_context.linear_out": "double_blocks.*.txt_mlp.2",
    "to_qkv_mlp_proj": "single_blocks.*.linear1", "to_out": "single_blocks.*.linear2",
}  # fmt: skip
PREFIXES = ("transformer_blocks.", "single_transformer_blocks.", "attn.")


def patterns(names: Iterable[str]) -> str:
    """Patterns for the ends of names in diffusers. Raises NotHere for a name that is no Linear of a block."""
    found: dict[str, None] = {}
    for name in names:
        end = name.strip()
        for prefix in PREFIXES:
            end = end.split(prefix, 1)[-1] if prefix in end else end
        end = end.lstrip("0123456789*.").removeprefix("attn.")
        if end not in OURS:
            raise NotHere(f"{name} is no layer that is known here; write patterns of ours into adapter.include")
        found[OURS[end]] = None
    return ", ".join(found)
