"""peft's configuration of an adapter: the scale of a LoRA that stands beside the file, or in its header."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ..errors import UserError
from .expressions import Patterns, Unreadable

FILE, BESIDE, HEADER = "adapter_model.safetensors", "adapter_config.json", "lora_adapter_metadata"
LARGEST = 1 << 20  # bytes
KINDS = ("LORA", "LOHA", "LOKR")


def beside(path: Path, header: dict[str, str]) -> dict:
    """The configuration that goes with a LoRA file, empty where the file stands for itself.

    peft's own lies in the folder of its file, diffusers' and SimpleTuner's in the file's header. Raises UserError for
    what cannot be read, and for kinds of adapters that are not read here.
    """
    config = path.with_name(BESIDE)
    if path.name == FILE and config.is_file():
        found = _json(config.name, _start_of(config))
        kind = str(found.get("peft_type", KINDS[0]))
        if kind.upper() not in KINDS and not _is_series(found):
            raise UserError(
                f"The peft folder of this LoRA holds {kind[:40]!r}; {', '.join(KINDS)} are read here, and OFT with "
                "peft's own choice of five Cayley-Neumann terms."
            )
        return found
    found = _json(f"the header of {path.name}", header.get(HEADER, "{}"))
    return {key.removeprefix("transformer."): value for key, value in found.items() if key.startswith("transformer.")}


def _is_series(config: dict) -> bool:
    """True for OFT whose rotations are the series that ``rotations.of_inputs`` computes, peft's default."""
    terms = config.get("use_cayley_neumann") is True and config.get("num_cayley_neumann_terms") == 5
    return config.get("peft_type") == "OFT" and terms and not config.get("coft")


class Scales:
    """What a configuration multiplies each layer's ``dW`` by: alpha over rank, or over its root (rsLoRA).

    Raises UserError where a number in it is none.
    """

    def __init__(self, config: dict):
        self.rank = _number(config, "r", 0)
        self.alpha = _number(config, "lora_alpha", _number(config, "alpha", self.rank))
        self.ranks, self.alphas = (Patterns(_numbers(config, f"{what}_pattern")) for what in ("rank", "alpha"))
        self.root = bool(config.get("use_rslora"))

    def of(self, name: str) -> float:
        """The factor of a layer by its dotted name. Raises UserError naming a pattern that is not read."""
        try:
            rank, alpha = self.ranks.of(name, self.rank), self.alphas.of(name, self.alpha)
        except Unreadable as error:
            raise UserError(
                f"A rank_pattern or alpha_pattern of this LoRA has {error}, which is not read here, so its scale is "
                r"unknown: only letters, '.', \d, *, +, ?, groups, | and anchors are."
            ) from error
        return alpha / (math.sqrt(rank) if self.root else rank) if rank > 0 else 1.0


def _number(config: dict, key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"The {key} of this LoRA's adapter configuration is {str(value)[:40]!r}, which is no number.")
    return value


def _numbers(config: dict, key: str) -> dict[str, float]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"The {key} of this LoRA's adapter configuration is no dictionary; its scale is unknown.")
    return {pattern: _number(found, pattern, 0) for pattern in found}


def _start_of(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(LARGEST + 1)


def _json(what: str, text: str) -> dict:
    try:
        found = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{what} holds no adapter configuration that can be read; the scale of this LoRA is unknown.")
    return found
