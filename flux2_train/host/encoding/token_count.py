"""How many tokens a caption has, by the real tokenizer, without any weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import comfy.text_encoders.flux
import torch
from safetensors import safe_open

from ...flavours import FLAVOURS
from ..loading import files

Count = Callable[[str], int]


@cache
def _counter(flavour: str) -> Count | None:
    row = FLAVOURS[flavour]
    if not row.tokenizer_tensor:
        klein = comfy.text_encoders.flux.KleinTokenizer()
        return _of(klein.qwen3_4b, klein)
    path = next((path for file in row.text_encoders if (path := files.find(file))), None)
    if path is None:
        return None
    with safe_open(path, framework="pt") as file:
        if row.tokenizer_tensor not in file.keys():  # noqa: SIM118  it is no dict
            return None
        data: torch.Tensor = file.get_tensor(row.tokenizer_tensor)
    whole = comfy.text_encoders.flux.Flux2Tokenizer(tokenizer_data={row.tokenizer_tensor: data})
    return _of(whole.mistral3_24b, whole)


def _of(inner, whole) -> Count:
    """Counts with the template that ComfyUI puts around a text."""

    def count(text: str) -> int:
        return len(inner.tokenizer(whole.llama_template.format(text))["input_ids"])

    return count


def counter(flavour: str) -> Count | None:
    """``count(text)``: tokens with the text encoder's template; None where no tokenizer is at hand.

    klein's and nano's come with ComfyUI; dev's lies in the file of its text encoder.
    """
    if flavour not in FLAVOURS:
        return None
    try:
        return _counter(flavour)
    except Exception:  # a file of another kind, or another version of transformers: words are counted instead
        return None
