"""Which Linears of a FLUX.2 transformer get an adapter, and of what rank.

A double block has eight Linears (qkv, proj, mlp.0, mlp.2 of the image and of the text stream), a single block two,
which are fused: ``linear1`` is qkv and the MLP's first layer, ``linear2`` attention's output projection and the MLP's
second layer. So both belong to ``attention`` and to ``mlp``, and only ``linear1`` has qkv.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import UserError
from .patterns import matching, restricted, split

PRESETS: dict[str, str] = {
    "all": r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])|single_blocks\.\d+\.linear[12]",
    "attention": r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear[12]",
    "mlp": r"double_blocks\.\d+\.(img|txt)_mlp\.[02]|single_blocks\.\d+\.linear[12]",
    "tiny": r"double_blocks\.\d+\.(img|txt)_attn\.qkv|single_blocks\.\d+\.linear1",
}

CHOSEN = "the chosen targets"


def select(
    names: Iterable[str],
    preset: str = "all",
    include: str = "",
    exclude: str = "",
    double_blocks: str = "",
    single_blocks: str = "",
) -> list[str]:
    """The Linears of the preset that the restrictions leave, in the model's order.

    ``include`` and ``exclude`` are glob patterns on layer names, ``double_blocks`` and ``single_blocks`` block numbers
    such as ``0-3, 7``; empty means no restriction. Raises UserError if the preset is unknown, if a pattern or a block
    number fits no layer of the preset, or if nothing is left.
    """
    if preset not in PRESETS:
        raise UserError(f"Unknown targets {preset!r}; choose one of {', '.join(PRESETS)}.")
    chosen = [name for name in names if re.fullmatch(PRESETS[preset], name)]
    if not chosen:
        raise UserError(f"Targets {preset!r} found no layer in this model; it is not a FLUX.2 transformer.")
    allowed = restricted(chosen, include, exclude, CHOSEN)
    blocks = _blocks(chosen, "double_blocks", double_blocks) | _blocks(chosen, "single_blocks", single_blocks)
    left = [name for name in chosen if name in allowed and _block(name) in blocks]
    if not left:
        raise UserError(f"Targets {preset!r} with these patterns and blocks leave no layer to train; loosen them.")
    return left


def ranks(names: Iterable[str], rank: int, alpha: float, overrides: str = "") -> dict[str, tuple[int, float]]:
    """Rank and alpha of every layer: ``rank`` and ``alpha``, or what the last fitting override says.

    An override is ``pattern = rank`` (alpha then keeps its ratio to the rank) or ``pattern = rank : alpha``. Raises
    UserError for one that cannot be read or fits no layer.
    """
    chosen = {name: (rank, alpha) for name in names}
    for line in split(overrides):
        match = re.fullmatch(r"(\S+)\s*=\s*(\d+)\s*(?::\s*(\d*\.?\d+))?", line)
        if not match or int(match[2]) < 1:
            raise UserError(
                f"The rank override {line!r} is not of the form 'pattern = rank' or 'pattern = rank : alpha'."
            )
        own = int(match[2])
        for name in matching(list(chosen), match[1], CHOSEN):
            chosen[name] = (own, float(match[3]) if match[3] else alpha * own / rank)
    return chosen


def _block(name: str) -> tuple[str, int]:
    kind, number, _ = name.split(".", 2)
    return kind, int(number)


def _blocks(names: list[str], kind: str, ranges: str) -> set[tuple[str, int]]:
    existing = {_block(name) for name in names if name.startswith(kind)}
    if not ranges.strip():
        return existing
    wanted = {(kind, number) for part in split(ranges) for number in _range(part, kind)}
    if wanted - existing:
        missing = ", ".join(str(number) for _, number in sorted(wanted - existing))
        raise UserError(f"{kind} {missing} are not in this model, which has {len(existing)} of them, counted from 0.")
    return wanted


def _range(text: str, kind: str) -> range:
    match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text)
    if not match or int(match[2] or match[1]) > 999:
        raise UserError(f"{kind} is {text!r}; write block numbers and ranges, such as '0-3, 7'.")
    return range(int(match[1]), int(match[2] or match[1]) + 1)
