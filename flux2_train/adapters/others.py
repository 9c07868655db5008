"""Changes in a LoRA file to weights that belong to no Linear: the norms of queries and keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .names import NORMS, bare_name, is_underscored, without_prefix

ENDS = (".diff", ".w_norm")


def norm_changes(keys: Iterable[str], weights: Iterable[str]) -> dict[str, str]:
    """For each key of a LoRA file, the one of ``weights`` that it changes; keys that change none are left out.

    ``weights`` are names in a transformer, ending in .weight or .scale. The file's names may be ComfyUI's or
    diffusers', with dots or underscores.
    """
    dotted = {alias: name for name in weights for alias in _aliases(name)}
    flat = {alias.replace(".", "_"): name for alias, name in dotted.items()}
    places = {}
    for key in keys:
        stem, dot, end = key.rpartition(".")
        if dot + end in ENDS:
            place = flat.get(without_prefix(stem)) if is_underscored(stem) else dotted.get(bare_name(stem))
            if place:
                places[key] = place
    return places


def _aliases(name: str) -> Iterable[str]:
    stem = name.rpartition(".")[0]
    yield stem
    block = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", stem)
    if block and block[3] in NORMS[block[1]]:
        kind = "single_" if block[1] == "single" else ""
        yield f"{kind}transformer_blocks.{block[2]}.{NORMS[block[1]][block[3]]}"
