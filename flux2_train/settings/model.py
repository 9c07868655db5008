"""Which model is loaded and how it is stored: the node Load FLUX.2."""

from __future__ import annotations

from typing import Literal

from ..flavours import FLAVOURS
from ..formats import AS_IN_FILE, CHOICES, PLANNED
from .base import RARE, Settings, setting, settings

AUTO = "auto"


def _file(what: str) -> str:
    return setting(
        AUTO,
        f"The {what} file. 'auto' takes the first official file of the flavour that you have and tells you exactly "
        "which one to download when there is none.",
        **RARE,
    )


@settings
class ModelSettings(Settings):
    """A file is a name in ComfyUI's folder of its kind, a full path, or ``auto``."""

    flavour: Literal[tuple(FLAVOURS)] = setting(
        next(iter(FLAVOURS)),
        "Which FLUX.2. klein-4b trains on the smallest cards, klein-9b is the good middle, dev is the largest. nano "
        "comes with the pack: use it to try a graph without any download.",
    )
    precision: Literal[(*CHOICES, PLANNED)] = setting(
        AS_IN_FILE,
        "How the transformer's weights are stored in memory. 'as in file' is right for official files, 'auto' takes "
        "what trains fastest in the memory that is free. Of a bf16 file, fp8, mxfp8 and int8 take half, nvfp4 and int4 "
        "a quarter of the memory, and lose a little more quality each. What the card has no fast arithmetic for still "
        "saves the memory.",
    )
    variant: Literal["auto", "base", "distilled"] = setting(
        AUTO,
        "Base or distilled klein: the weights do not tell, so 'auto' goes by file name and prefers base. Train on "
        "base; a distilled model samples in 4 steps without guidance.",
        **RARE,
    )
    transformer: str = _file("transformer")
    text_encoder: str = _file("text encoder")
    vae: str = _file("VAE")
    text_encoder_precision: Literal[CHOICES] = setting(
        AS_IN_FILE, "How the text encoder's weights are stored, as for the transformer.", **RARE
    )
    quantize_via: Literal["auto", "cpu", "gpu"] = setting(
        AUTO,
        "Where quantising is computed. 'auto' is ComfyUI's device, one layer at a time; 'cpu' leaves the card alone "
        "and is slower.",
        **RARE,
    )
    keep_quantised: bool = setting(
        False,
        "Keep the quantised model as a file in a folder beside the others, so that the next start is instant. Every "
        "ComfyUI loader can read it; delete it whenever you like.",
        **RARE,
    )
