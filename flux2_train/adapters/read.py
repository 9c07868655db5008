"""Reading LoRA files: every format that trainers of FLUX.2 write, as one part per Linear.

A key is ``<stem>.<tensor>``; the stem says which Linear (names.py), the tensor what it is in which kind of adapter.
Nothing is dropped silently: what is not understood is an error that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError
from .header import Tensors
from .names import Names, Place, Sizes, bare_name
from .parts import Hadamard, Kronecker, LowRank, Part, Split, rows, size_of

LARGEST_FILE = 32 << 30  # bytes; rank 1024 on every layer of dev, in fp32, is 25 GB
MOST_TENSORS = 20_000
LARGEST_CONFIG = 1 << 20

_ROLES = {  # by the kind of tensor: how its key ends
    "down": r"\.lora_down\.weight|\.lora_A(\.\w+)?\.weight|\.lora_A|[._]lora\.down\.weight"
    r"|\.lora_linear_layer\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(\.\w+)?\.weight|\.lora_B|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector(\.\w+)*",
    **{f"hada_{w}_{x}": rf"\.hada_{w}_{x}" for w in ("w1", "w2") for x in "ab"},
    **{f"lokr_{w}": rf"\.lokr_{w}" for w in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")},
}
_KEY = re.compile("(?P<stem>.+?)(?:" + "|".join(f"(?P<{role}>{end})" for role, end in _ROLES.items()) + ")")
_CARRIES_SCALE = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a")  # multiplying one of these multiplies dW


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA file, with a scale that stands only in its header or in peft's config folded in.

    diffusers and SimpleTuner keep alpha in the header, peft in ``adapter_config.json`` beside the file; ComfyUI's
    stock loader looks at neither and applies such a file too strongly or too weakly. Raises UserError for anything
    but safetensors (pickles run code when loaded) and for files too large to be a LoRA.
    """
    tensors, header = _load(path)
    config = _config(path, header)
    if config and not any(key.endswith(".alpha") for key in tensors):
        tensors = {key: _scaled(key, tensor, config) for key, tensor in tensors.items()}
    return Tensors(tensors, header)


def header(path: Path) -> dict[str, str]:
    """The metadata in a LoRA file's header."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read(tensors: dict[str, Tensor], sizes: Sizes, model: str) -> tuple[dict[str, Part], list[str]]:
    """A LoRA file's parts (fp32) by Linear name, and the keys that mean nothing in this model.

    ``sizes`` are those of the model's Linears, ``model`` its name for messages. Raises UserError if the LoRA was made
    for layers of other sizes, is damaged or says the same thing twice.
    """
    names, places, unmatched = Names(sizes), {}, []
    for key, tensor in tensors.items():
        stem, role = parse(key)
        place = names.find(stem) if role else None
        if place is None:
            unmatched.append(key)
        elif role in places.setdefault(place, {}):
            raise UserError(f"This LoRA has {role} of {place.name} twice ({key}); it is no whole file of one LoRA.")
        else:
            places[place][role] = tensor
    pieces: dict[str, list[tuple[int, Part]]] = {}
    for place, found in places.items():
        part = _part(place, found)
        _check_size(place, part, sizes[place.name][0], model)
        pieces.setdefault(place.name, []).extend(_in_order(place, part))
    return {name: _joined(name, sizes[name][1], pieces[name]) for name in sizes if name in pieces}, unmatched


def require_matched(unmatched: list[str], total: int, model: str) -> None:
    """Raise UserError naming the keys that match nothing in the model, unless there are none."""
    if unmatched or not total:
        names = ", ".join(sorted(unmatched)[:3]) or "it has no LoRA keys"
        raise UserError(
            f"{len(unmatched)} of {total} keys of this LoRA match nothing in {model} ({names}): "
            "it was made for another model."
        )


def parse(key: str) -> tuple[str, str]:
    """A key's stem and what kind of tensor it is, an empty kind for one that no adapter here has."""
    found = _KEY.fullmatch(key)
    return (found["stem"], next(r for r in _ROLES if found[r])) if found else (key, "")


def _part(place: Place, found: dict[str, Tensor]) -> Part:
    # in fp32, whatever the file has; some trainers write 1x1 convolutions
    flat = {role: (t.flatten(1) if t.ndim > 2 else t).float() for role, t in found.items()}
    alpha = float(flat.pop("alpha")) if "alpha" in flat else None
    kinds = {role.partition("_")[0] for role in flat} - {"dora", "magnitude"}
    try:
        if kinds <= {"up", "down"} and kinds:
            part = _low_rank(place, alpha, **flat)
        elif kinds == {"hada"}:
            part = _hadamard(alpha, **flat)
        elif kinds == {"lokr"}:
            part = _kronecker(alpha, **flat)
        else:
            raise TypeError(f"it has {', '.join(flat) or 'alpha'} only")
        _check_whole(part)
    except (TypeError, RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"This LoRA is damaged at {place.name}: {error}.") from error
    return part


def _check_whole(part: Part) -> None:
    pairs = {
        LowRank: lambda: [(part.up, part.down)],
        Hadamard: lambda: [
            (part.up1, part.down1),
            (part.up2, part.down2),
            (part.up1.T, part.up2),
            (part.down1, part.down2.T),
        ],
        Kronecker: lambda: [factor for factor in (part.left, part.right) if len(factor) == 2],
    }
    for a, b in pairs[type(part)]():
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"matrices of {tuple(a.shape)} and {tuple(b.shape)} do not fit together")


def _low_rank(place: Place, alpha: float | None, down: Tensor, up: Tensor, dora_scale=None, magnitude=None) -> LowRank:
    of_base = dora_scale is not None
    norms = dora_scale if of_base else magnitude
    if norms is not None:
        if norms.numel() != len(up):
            raise UserError(
                f"The DoRA at {place.name} scales the layer's {norms.numel()} inputs; only DoRA that scales outputs is "
                "read here. ComfyUI's own Load LoRA reads it."
            )
        norms = norms.flatten()
    return LowRank(down, up, _scale(alpha, len(down)), norms, of_base)


def _hadamard(alpha: float | None, hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b) -> Hadamard:
    return Hadamard(hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, _scale(alpha, len(hada_w1_b)))


def _kronecker(alpha: float | None, **found: Tensor) -> Kronecker:
    left, right = (
        tuple(found[role] for role in (f"lokr_{w}", f"lokr_{w}_a", f"lokr_{w}_b") if role in found)
        for w in ("w1", "w2")
    )
    if len(left) + len(right) != len(found) or not left or not right:
        raise ValueError("it is no LoKr")
    rank = len(right[1]) if len(right) == 2 else len(left[1]) if len(left) == 2 else None
    return Kronecker(left, right, 1.0 if rank is None else _scale(alpha, rank))  # whole factors have no rank: scale 1


def _scale(alpha: float | None, rank: int) -> float:
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"its alpha is {alpha}")
    return 1.0 if alpha is None else alpha / rank


def _check_size(place: Place, part: Part, into: int, model: str) -> None:
    if size_of(part) != (into, place.count):
        found_in, found_out = size_of(part)
        raise UserError(
            f"This LoRA was trained on another FLUX.2 flavour: {place.name} is {place.count}x{into} "
            f"in {model}, the LoRA's is {found_out}x{found_in}."
        )


def _in_order(place: Place, part: Part) -> list[tuple[int, Part]]:
    """The part with the row it starts at, or its halves where the file has them the other way round."""
    if not place.swapped:
        return [(place.start, part)]
    half = place.count // 2
    return [(0, rows(part, half, half)), (half, rows(part, 0, half))]


def _joined(name: str, out: int, pieces: list[tuple[int, Part]]) -> Part:
    """One part of a Linear from those of its rows, q, k and v in three for example."""
    if len(pieces) == 1 and size_of(pieces[0][1])[1] == out:
        return pieces[0][1]
    pieces = sorted(pieces, key=lambda piece: piece[0])
    ends = [start + size_of(part)[1] for start, part in pieces]
    if any(end > start for end, (start, _) in zip(ends, pieces[1:], strict=False)):
        raise UserError(f"This LoRA holds {name} both whole and in parts; it is no whole file of one LoRA.")
    return _fused(name, out, pieces)


def _fused(name: str, out: int, pieces: list[tuple[int, Part]]) -> Part:
    kinds = {type(part) for _, part in pieces}
    if kinds == {LowRank}:
        return _fused_low_rank(name, out, [p for _, p in pieces], [start for start, _ in pieces])
    if kinds == {Hadamard}:
        return _fused_hadamard(out, [p for _, p in pieces], [start for start, _ in pieces])
    return Split(out, tuple(start for start, _ in pieces), tuple(part for _, part in pieces))


def _fused_low_rank(name: str, out: int, parts: list[LowRank], starts: list[int]) -> LowRank:
    whole = sum(size_of(part)[1] for part in parts) == out
    magnitudes = [part.magnitude for part in parts if part.magnitude is not None]
    if magnitudes and not (whole and len(magnitudes) == len(parts) and len({part.of_base for part in parts}) == 1):
        raise UserError(f"This LoRA has DoRA on some rows of {name} only, which cannot be read.")
    magnitude = torch.cat(magnitudes) if magnitudes else None
    ups = [part.up * part.scale for part in parts]
    down = parts[0].down
    if whole and all(torch.equal(part.down, down) for part in parts):  # one adapter, written in three
        return LowRank(down, torch.cat(ups), 1.0, magnitude, parts[0].of_base)
    downs = torch.cat([part.down for part in parts])
    return LowRank(downs, _diagonal(ups, starts, out), 1.0, magnitude, parts[0].of_base)


def _fused_hadamard(out: int, parts: list[Hadamard], starts: list[int]) -> Hadamard:
    return Hadamard(
        _diagonal([p.up1 * p.scale for p in parts], starts, out),
        torch.cat([p.down1 for p in parts]),
        _diagonal([p.up2 for p in parts], starts, out),
        torch.cat([p.down2 for p in parts]),
    )


def _diagonal(blocks: list[Tensor], starts: Iterable[int], out: int) -> Tensor:
    """(out, sum of ranks) with each block in its own rows and columns, zero elsewhere."""
    whole, column = torch.zeros(out, sum(block.shape[1] for block in blocks)), 0
    for start, block in zip(starts, blocks, strict=True):
        whole[start : start + len(block), column : column + block.shape[1]] = block
        column += block.shape[1]
    return whole


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is not a safetensors file; only safetensors LoRAs are loaded.")
    if not path.is_file():
        raise UserError(f"{path} is not there.")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path.name} has {path.stat().st_size >> 30} GB: that is no LoRA, but a whole model.")
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        if len(keys) > MOST_TENSORS:
            raise UserError(f"{path.name} has {len(keys)} tensors: that is no LoRA.")
        return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}


def _config(path: Path, header: dict[str, str]) -> dict:
    """peft's configuration of the adapter, empty where the file stands for itself."""
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        return _json(beside.name, beside.read_text()[: LARGEST_CONFIG + 1])
    found = _json(f"the header of {path.name}", header.get("lora_adapter_metadata", "{}"))
    return {key.removeprefix("transformer."): value for key, value in found.items() if key.startswith("transformer.")}


def _json(what: str, text: str) -> dict:
    try:
        found = json.loads(text) if len(text) <= LARGEST_CONFIG else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{what} holds no adapter configuration that can be read; the scale of this LoRA is unknown.")
    return found


def _scaled(key: str, tensor: Tensor, config: dict) -> Tensor:
    stem, role = parse(key)
    if role not in _CARRIES_SCALE:
        return tensor
    rank = _of(config, "rank_pattern", stem, config.get("r", 0))
    alpha = _of(config, "alpha_pattern", stem, config.get("lora_alpha", config.get("alpha", rank)))
    if not rank or (rank == alpha and not config.get("use_rslora")):
        return tensor
    return tensor.float() * (alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of(config: dict, pattern: str, stem: str, default: float) -> float:
    """peft's rule: the first pattern that ends the layer's name wins; patterns are read as names, escaped or not."""
    for expression, value in (config.get(pattern) or {}).items():
        end = expression.replace("\\", "").strip("^$")
        if not re.fullmatch(r"[\w.-]+", end):
            raise UserError(
                f"The {pattern} of this LoRA has {expression!r}, which is no layer's name; its scale is unknown."
            )
        if f".{bare_name(stem)}".endswith(f".{end}"):
            return value
    return default
