"""Whether the ComfyUI that runs can build a flavour's tokenizer.

dev's tokenizer lies in its text encoder's file. ComfyUI up to 0.30 lets transformers build it, which versions from 5 on
no longer can; newer ones, which have ``comfy.text_encoders.bpe_tokenizer``, build it themselves.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from ...flavours import Flavour

_OF_CORE = "comfy.text_encoders.bpe_tokenizer"


def problem(flavour: Flavour) -> str:
    """Why the tokenizer cannot be built, and what to install; empty if it can."""
    limit = flavour.transformers_limit
    if not limit or importlib.util.find_spec(_OF_CORE):
        return ""
    installed = importlib.metadata.version("transformers")
    if _major(installed) <= _major(limit):
        return ""
    return (
        f"transformers {installed} cannot build the tokenizer of {flavour.name} in this ComfyUI; install "
        f"transformers=={limit}, or a newer ComfyUI, which builds it itself."
    )


def _major(version: str) -> int:
    return int(version.partition(".")[0])
