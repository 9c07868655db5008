"""peft's configuration of an adapter, in a file beside the LoRA or in its header: it holds the LoRA's scale."""

from __future__ import annotations

import math
from pathlib import Path

from ..bounded import from_json, is_file, read_text
from ..errors import UserError
from .expressions import Patterns, Unreadable

FILE, BESIDE, HEADER = "adapter_model.safetensors", "adapter_config.json", "lora_adapter_metadata"
LARGEST = 1 << 20  # bytes
KINDS = ("LORA", "LOHA", "LOKR")


def beside(path: Path, header: dict[str, str]) -> dict:
    """The configuration that belongs to a LoRA file, empty if it has none.

    peft keeps it in the folder of the LoRA, diffusers and SimpleTuner in the LoRA's header. Raises UserError if it
    cannot be read or names a kind of adapter that is not read here.
    """
    config = path.with_name(BESIDE)
    if path.name == FILE and is_file(config):
        values = _json(config.name, read_text(config, LARGEST, " as an adapter's configuration"))
        kind = str(values.get("peft_type", KINDS[0]))
        if kind.upper() not in KINDS and not _is_series(values):
            raise UserError(
                f"The peft folder of this LoRA holds {kind[:40]!r}; {', '.join(KINDS)} are read here, and OFT with "
                "peft's own choice of five Cayley-Neumann terms."
            )
        return values
    values = _json(f"the header of {path.name}", header.get(HEADER, "{}"))
    return {key.removeprefix("transformer."): value for key, value in values.items() if key.startswith("transformer.")}


def _is_series(config: dict) -> bool:
    """True for OFT whose rotations are the series that ``rotations.of_inputs`` computes, peft's default."""
    terms = config.get("use_cayley_neumann") is True and config.get("num_cayley_neumann_terms") == 5
    return config.get("peft_type") == "OFT" and terms and not config.get("coft")


class Scales:
    """The factor of each layer's ``dW`` in a configuration: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    Raises UserError if a value that must be a number is none.
    """

    def __init__(self, config: dict):
        self.rank = _number(config, "r", 0)
        self.alpha = _number(config, "lora_alpha", _number(config, "alpha", self.rank))
        self.ranks, self.alphas = (Patterns(_numbers(config, f"{what}_pattern")) for what in ("rank", "alpha"))
        self.root = bool(config.get("use_rslora"))

    def of(self, name: str) -> float:
        """The factor of a layer by its dotted name. Raises UserError naming a pattern that is not supported."""
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
    values = config.get(key) or {}
    if not isinstance(values, dict):
        raise UserError(f"The {key} of this LoRA's adapter configuration is no dictionary; its scale is unknown.")
    return {pattern: _number(values, pattern, 0) for pattern in values}


def _json(what: str, text: str) -> dict:
    try:
        values = from_json(text) if len(text) <= LARGEST else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{what} holds no adapter configuration that can be read; the scale of this LoRA is unknown.")
    return values
