"""A FLUX.2 transformer with diffusers' names: which of its tensors make up each of ComfyUI's.

In diffusers q, k and v are three matrices, in ComfyUI one. The halves of the last modulation are in opposite order:
scale and shift in diffusers, shift and scale in ComfyUI. All other tensors only have another name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import UserError
from ..names import counted
from .names import NORMS, SWAPPED, in_diffusers, sizes_of

MARK = "double_stream_modulation_img.linear.weight"  # FLUX.1 has no such tensor, and ComfyUI's names end in .lin


@dataclass(frozen=True)
class Origin:
    """The tensors of a file that, joined along their rows in this order, are one of ComfyUI's tensors.

    ``swapped``: the first and second half of the rows must be exchanged.
    """

    keys: tuple[str, ...]
    swapped: bool = False


def is_diffusers(names: Collection[str]) -> bool:
    """Whether tensors of these names are a FLUX.2 transformer as diffusers saves it."""
    return MARK in names


def origins(names: Collection[str], file: str) -> dict[str, Origin]:
    """The origin of each of ComfyUI's tensors, by its name there (norms with ``.weight`` too).

    ``names`` are the tensors of all the files of the model. Raises UserError if a tensor is missing, or if one has no
    place in FLUX.2: the scales of quantised weights, for example, which cannot be joined.
    """
    by_name = {f"{name}.weight": origin for name, origin in _expected(names)}
    known = {key for origin in by_name.values() for key in origin.keys}
    missing, strange = sorted(known.difference(names)), sorted(set(names) - known)
    if missing:
        raise UserError(f"{file} lacks {counted(len(missing), 'weight')}, {missing[0]} first: download it again.")
    if strange:
        raise UserError(
            f"{file} has diffusers' names and {len(strange)} tensors that a FLUX.2 transformer in bf16 has not, "
            f"{strange[0]} first; use diffusers' unquantised files, or a quantised one in ComfyUI's names."
        )
    return by_name


def _expected(names: Collection[str]):
    blocks = {kind: _blocks(names, prefix) for kind, prefix in (("double", ""), ("single", "single_"))}
    guidance = any(".guidance_embedder." in name for name in names)  # dev has it, klein has not
    for name in sizes_of(1, blocks["double"], blocks["single"], 1):
        if name.startswith("guidance_in.") and not guidance:
            continue
        stems = ("norm_out.linear",) if name == SWAPPED else in_diffusers(name)[0]
        yield name, Origin(tuple(f"{stem}.weight" for stem in stems), name == SWAPPED)
    for kind, prefix in (("double", ""), ("single", "single_")):
        for number in range(blocks[kind]):
            for ours, theirs in NORMS[kind].items():
                key = f"{prefix}transformer_blocks.{number}.{theirs}.weight"
                yield f"{kind}_blocks.{number}.{ours}", Origin((key,))


def _blocks(names: Collection[str], prefix: str) -> int:
    numbered = re.compile(rf"{prefix}transformer_blocks\.(\d{{1,4}})\.")
    return len({match[1] for name in names if (match := numbered.match(name))})
