"""A tiny Qwen3-VL of ComfyUI's own classes: it sees pictures and writes text, of which nothing makes sense."""

from __future__ import annotations

import comfy.sd
import torch
from comfy.text_encoders import qwen3vl

NAME = "qwen3vl_4b"
TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
SIGHT = {"hidden_size": 32, "intermediate_size": 32, "depth": 2, "deepstack_visual_indexes": [0]}


def seeing_clip(monkeypatch):
    """A CLIP as Load CLIP makes one, with random weights that are the same each time."""
    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, NAME, SIGHT)
    monkeypatch.setattr(qwen3vl, "QWEN3VL_VISION_COMMON", {**qwen3vl.QWEN3VL_VISION_COMMON, "num_heads": 2})

    class Target:
        params: dict = {}
        clip = qwen3vl.te(model_type=NAME, dtype_llama=torch.float32)
        tokenizer = qwen3vl.tokenizer(model_type=NAME)

    clip = comfy.sd.CLIP(Target, parameters=1000, model_options={f"{NAME}_model_config": TEXT})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clip.cond_stage_model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return clip
