"""Lets a text encoder that sees pictures describe one, as ComfyUI's node Generate Text does."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ...errors import UserError
from ..graph_types import CLIP

CAN = "Qwen3-VL, Qwen3.5, Gemma 3 or Gemma 4, loaded by Load CLIP"
_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # descriptions by model, then by what was asked


def require_sight(clip: CLIP) -> None:
    """Raise UserError, which names text encoders that can, unless this one sees pictures and writes text.

    A tokenizer that takes no picture leaves it out silently, and the model would describe something else.
    """
    if not hasattr(clip, "generate"):
        raise UserError("This ComfyUI cannot let a text encoder write: update it to 0.30 or later, or wire 'captions'.")
    tokens = clip.tokenize("x", image=torch.zeros(1, 64, 64, 3), min_length=1)
    if not any(isinstance(token[0], dict) for row in next(iter(tokens.values())) for token in row):
        raise UserError(
            f"The text encoder that is wired into 'clip' cannot see pictures: wire one that can ({CAN}), or wire texts "
            "of another node into 'captions'."
        )


def describe(clip: CLIP, image: Tensor, digest: str, prompt: str, most: int) -> str:
    """What the model writes about an image (1, H, W, 3) in 0..1: at most ``most`` tokens, the likeliest each time.

    ``digest`` is the content's hash: the same question about the same content is answered from memory, so that what
    was previewed is what is written.
    """
    known = _known.setdefault(clip.cond_stage_model, {})
    key = (digest, prompt, most)
    if key not in known:
        tokens = clip.tokenize(prompt, image=image, skip_template=False, min_length=1, thinking=False)
        known[key] = clip.decode(clip.generate(tokens, do_sample=False, max_length=most)).strip()
    return known[key]
