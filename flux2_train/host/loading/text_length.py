"""A flavour that pads captions to fewer than 512 tokens, and a MODEL that reads embeds just as long as they are.

ComfyUI's tokenizer takes the length from an option of the CLIP, which clones and all of its nodes keep. Its FLUX.2 then
fills shorter embeds up to 512 tokens with zeros in front (for dev, whose tokenizer does not pad); a MODEL of such a
flavour leaves them as they are.
"""

from __future__ import annotations

import comfy.conds
import comfy.model_base
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...flavours import LONGEST, Flavour
from .. import identify


class AsLong(comfy.model_base.Flux2):
    """ComfyUI's FLUX.2 whose embeds keep their length."""

    def extra_conds(self, **kwargs) -> dict:
        """See ``comfy.model_base.BaseModel``."""
        conds, embeds = super().extra_conds(**kwargs), kwargs.get("cross_attn")
        if embeds is not None:
            conds["c_crossattn"] = comfy.conds.CONDRegular(embeds)
        return conds


def pad_clip(clip: CLIP, row: Flavour) -> None:
    """Let a CLIP pad captions to the flavour's length."""
    if row.text_length != LONGEST:
        clip.set_tokenizer_option("qwen3_4b_min_length", row.text_length)


def keeps_length(model: ModelPatcher) -> bool:
    """Let a MODEL of such a flavour read embeds as long as they are; whether it is of one."""
    core = model.model
    row = identify.flavour_of(model) if isinstance(core, comfy.model_base.Flux2) else None
    if row is None or row.text_length == LONGEST:
        return False
    core.__class__ = AsLong
    return True


def read_by(model: ModelPatcher) -> int:
    """How many text tokens a MODEL reads of a caption that is not longer."""
    row = identify.flavour_of(model) if isinstance(model.model, AsLong) else None
    return row.text_length if row else LONGEST
