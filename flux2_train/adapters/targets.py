"""Which Linears of a FLUX.2 transformer get an adapter.

Double blocks have eight (qkv, proj, mlp.0, mlp.2 of the image and of the text stream), single blocks two. The
two of a single block are fused: ``linear1`` holds qkv and the MLP's first layer, ``linear2`` attention's output
projection and the MLP's second layer, so both belong to ``attention`` and to ``mlp``; only ``linear1`` holds qkv.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import UserError

PRESETS: dict[str, str] = {
    "all": r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])|single_blocks\.\d+\.linear[12]",
    "attention": r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear[12]",
    "mlp": r"double_blocks\.\d+\.(img|txt)_mlp\.[02]|single_blocks\.\d+\.linear[12]",
    "tiny": r"double_blocks\.\d+\.(img|txt)_attn\.qkv|single_blocks\.\d+\.linear1",
}


def select(names: Iterable[str], preset: str = "all") -> list[str]:
    """The Linears of the preset, in the model's order. Raises UserError if the preset is unknown or finds none."""
    if preset not in PRESETS:
        raise UserError(f"Unknown targets {preset!r}; choose one of {', '.join(PRESETS)}.")
    chosen = [name for name in names if re.fullmatch(PRESETS[preset], name)]
    if not chosen:
        raise UserError(f"Targets {preset!r} found no layer in this model; it is not a FLUX.2 transformer.")
    return chosen
