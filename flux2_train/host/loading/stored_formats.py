"""The quantised formats in which a file stores its weights, read from its header, and whether this ComfyUI has them.

A file names the format of each quantised Linear: in its header under ``_quantization_metadata``, or in a small tensor
of JSON beside the Linear. ComfyUI looks the name up in a table, ``QUANT_ALGOS``, which grows with its versions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import comfy.quant_ops

from ... import safetensors_header
from ...errors import UserError
from ...names import shown
from .. import contract

IN_HEADER, BESIDE = "_quantization_metadata", ".comfy_quant"


def formats_of(header: safetensors_header.Header) -> set[str]:
    """The names of the formats in a file. What is no description of a format is left for ComfyUI to refuse."""
    described = _object(header.metadata.get(IN_HEADER, "")).get("layers")
    found = list(described.values()) if isinstance(described, dict) else []
    found += [_object(header.read(key)) for key in header.tensors if key.endswith(BESIDE)]
    return {each["format"] for each in found if isinstance(each, dict) and isinstance(each.get("format"), str)}


def _object(text: str | bytes) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def require_known(parts: Sequence[Path]) -> None:
    """Raise UserError if a model's files store weights in a format that this ComfyUI does not have."""
    for part in parts:
        unknown = sorted(formats_of(safetensors_header.read(part)) - set(comfy.quant_ops.QUANT_ALGOS))
        if unknown:
            raise UserError(
                f"{shown(part.name)} stores its weights as {shown(', '.join(unknown), 100)}. This ComfyUI "
                f"({contract.version()}) cannot read that: update ComfyUI, or use a file of the same model in another "
                "format."
            )
