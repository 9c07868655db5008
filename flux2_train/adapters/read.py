"""Reading LoRA files: every format that trainers of FLUX.2 write, as one part per Linear.

A key is ``<stem>.<tensor>``; the stem says which Linear (names.py), the tensor what it is in which kind of adapter.
Nothing is dropped silently: what is not understood is an error that names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .. import safetensors_header
from ..bounded import is_file
from ..errors import UserError
from . import peft_config, rotations, writers
from .header import Tensors
from .names import LinearPlace, Names, Sizes, bare_name
from .parts import Decomposed, Full, Hadamard, Kronecker, LowRank, Part, Split, rows, size_of

LARGEST_FILE = 32 << 30  # bytes; rank 1024 on every layer of dev, in fp32, is 25 GB
MOST_TENSORS = 20_000
LONGEST_KEY = 1000

_ROLES = {  # by the role of a tensor in its adapter: how its key ends
    "down": r"\.lora_down\.weight|\.lora_A(\.\w+)?\.weight|\.lora_A|[._]lora\.down\.weight"
    r"|\.lora_linear_layer\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(\.\w+)?\.weight|\.lora_B|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector(\.\w+)*|\.magnitude",
    "diff": r"\.diff",
    "oft_blocks": r"\.oft_blocks",
    "rescale": r"\.rescale",
    "oft_upper": r"\.oft_R\.weight",
    "oft_scaled": r"\.oft_R\.scaled_oft",
    **{f"hada_{w}_{x}": rf"\.hada_{w}_{x}" for w in ("w1", "w2") for x in "ab"},
    **{f"lokr_{w}": rf"\.lokr_{w}" for w in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")},
}
_KEY = re.compile("(?P<stem>.+?)(?:" + "|".join(f"(?P<{role}>{end})" for role, end in _ROLES.items()) + ")")
_UNREAD = {  # kinds of adapters that are not read, by how their keys end
    "GLoRA": r"\.([ab][12]|bm)\.weight",
    "T-LoRA": r"\.([pq]_layer\.weight|lambda_layer)",
    "Tucker decomposition": r"\.(hada_t[12]|lokr_t[12]|lora_mid\.weight)",
    "IA3": r"\.(on_input|ia3_l(\.\w+)?)",
    "VeRA": r"\.vera_lambda_[bd](\.\w+)?",
    "peft's BOFT": r"\.boft_[RS](\.\w+)?",
    "HRA": r"\.hra_u(\.\w+)?",
    "a whole new weight": r"\.(set_weight|reshape_weight)",
    "a new bias": r"\.(diff_b|lora_B(\.\w+)?\.bias)",
}
_CARRIES_SCALE = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a")  # multiplying one of these multiplies dW


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA file. A scale that only the header or peft's config has is multiplied into them.

    diffusers and SimpleTuner keep alpha in the header, peft in ``adapter_config.json`` beside the file. ComfyUI's own
    loader reads neither and applies such a file too strongly or too weakly. Raises UserError for anything but
    safetensors (pickles run code when loaded) and for files too large to be a LoRA.
    """
    tensors, header = _load(path)
    config = peft_config.beside(path, header)
    if config and not any(key.endswith(".alpha") for key in tensors):
        tensors = _scaled(tensors, config)
    return Tensors(tensors, header)


def header(path: Path) -> dict[str, str]:
    """The metadata in a LoRA file's header."""
    return safetensors_header.read(path).metadata


def read(tensors: dict[str, Tensor], sizes: Sizes, model: str) -> tuple[dict[str, Part], list[str]]:
    """A LoRA file's parts (fp32) by Linear name, and the keys that match nothing in this model.

    ``sizes`` are those of the model's Linears, ``model`` its name for messages. Raises UserError if the LoRA was made
    for layers of other sizes, is damaged, or has the same tensor twice.
    """
    names, places, stems, unmatched = Names(sizes), {}, {}, []
    header = getattr(tensors, "header", {})
    for key, tensor in tensors.items():
        stem, role = parse(key)
        place = names.find(stem) if role else None
        if place is None:
            unmatched.append(key)
        elif role in places.setdefault(place, {}):
            raise UserError(f"This LoRA has {role} of {place.name} twice ({key}); it is no whole file of one LoRA.")
        else:
            places[place][role] = tensor
            stems[place] = stem
    _require_known(unmatched, names)
    pieces: dict[str, list[tuple[int, Part]]] = {}
    for place, by_role in places.items():
        part = _part(place, by_role, sizes[place.name][0], stems[place], header)
        _check_size(place, part, sizes[place.name][0], model)
        pieces.setdefault(place.name, []).extend(_in_order(place, part))
    return {name: _joined(name, sizes[name][1], pieces[name]) for name in sizes if name in pieces}, unmatched


def require_matched(unmatched: list[str], total: int, model: str) -> None:
    """Raise UserError naming the ``unmatched`` of ``total`` keys, if there are any or the LoRA has no keys at all."""
    if unmatched or not total:
        names = ", ".join(sorted(unmatched)[:3]) or "it has no LoRA keys"
        raise UserError(
            f"{len(unmatched)} of {total} keys of this LoRA match nothing in {model} ({names}): "
            "it was made for another model."
        )


def parse(key: str) -> tuple[str, str]:
    """A key's stem and its tensor's role in the adapter; the role is empty if no adapter here has such a tensor."""
    match = _KEY.fullmatch(key) if len(key) <= LONGEST_KEY else None
    return (match["stem"], next(r for r in _ROLES if match[r])) if match else (key, "")


def _require_known(unmatched: list[str], names: Names) -> None:
    """Raise UserError for keys on the model's layers that belong to kinds of adapters that are not read here."""
    for key in unmatched:
        for kind, end in _UNREAD.items():
            match = re.search(f"(?:{end})$", key) if len(key) <= LONGEST_KEY else None
            if match and names.find(key[: match.start()]):
                raise UserError(
                    f"This LoRA holds {kind} ({key}), which cannot be read exactly here. Save it as plain LoRA, LoHa "
                    "or LoKr in the program that made it, or use ComfyUI's own Load LoRA if that knows it."
                )


def _part(place: LinearPlace, by_role: dict[str, Tensor], into: int, stem: str, header: dict[str, str]) -> Part:
    try:
        # in fp32, whatever the file has; some trainers write 1x1 convolutions, which are flattened to matrices
        flat = {
            role: (t.flatten(1) if t.ndim > 2 and role != "oft_blocks" else t).float() for role, t in by_role.items()
        }
        scales = {role: flat.pop(role) for role in ("dora_scale", "magnitude") if role in flat}
        alpha = _finite(flat.pop("alpha")) if "alpha" in flat else None
        part = _plain(place, flat, alpha, into, stem)
        _check_shapes(part)
        if scales:
            of_base = "dora_scale" in scales and writers.divides_by_base(stem, alpha is not None, header)
            part = _decomposed(part, *scales.values(), of_base)
    except (ArithmeticError, LookupError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"This LoRA is damaged at {place.name}: {error}.") from error
    return part


def _plain(place: LinearPlace, by_role: dict[str, Tensor], alpha: float | None, into: int, stem: str) -> Part:
    """The part of a place without DoRA's magnitudes."""
    kinds = {role.partition("_")[0] for role in by_role}
    if kinds == {"down"} and by_role["down"].shape == (place.count, into):
        return Full(by_role["down"])  # ai-toolkit's "fullrank"
    if kinds <= {"up", "down"} and kinds:
        return _low_rank(alpha, **by_role)
    if kinds == {"hada"}:
        return _hadamard(alpha, **by_role)
    if kinds == {"lokr"}:
        return _kronecker(alpha, **by_role)
    if kinds == {"diff"}:
        return Full(by_role["diff"])
    if kinds <= {"oft", "rescale"} and kinds:
        return _rotation(place, alpha, into, stem, **by_role)
    raise TypeError(f"it has {', '.join(by_role) or 'alpha'} only")


def _rotation(
    place: LinearPlace, alpha: float | None, into: int, stem: str, oft_blocks=None, rescale=None, oft_upper=None,
    oft_scaled=None,
) -> Part:  # fmt: skip
    if (oft_blocks is None) == (oft_upper is None):
        raise ValueError("it is no OFT")
    if oft_blocks is None:
        return rotations.of_inputs(oft_upper, (into, place.count), oft_scaled is not None)
    limit = writers.constraint(stem, alpha, place.count)
    return rotations.of_outputs(oft_blocks, (into, place.count), limit, rescale)


def _decomposed(part: Part, scale: Tensor, of_base: bool) -> Part:
    """The part with DoRA's magnitudes ``scale``: of the rows, or, if its shape is (1, in), of the columns."""
    into, out = size_of(part)
    rows_scaled = scale.shape[0] == out and scale.numel() == out
    if not rows_scaled and scale.numel() != into:
        raise ValueError(f"its DoRA scales {scale.numel()} rows or columns of {out} and {into}")
    if rows_scaled and isinstance(part, LowRank):
        return LowRank(part.down, part.up, part.scale, scale.flatten(), of_base)
    return Decomposed(part, scale.flatten(), of_base and rows_scaled, not rows_scaled)


def _check_shapes(part: Part) -> None:
    """Raise ValueError if a factor of a part is no matrix, or two of them cannot be multiplied."""
    matrices = {Full: lambda: [part.diff], Kronecker: lambda: [*part.left, *part.right]}
    for matrix in matrices.get(type(part), list)():
        if matrix.ndim != 2 or not matrix.numel():
            raise ValueError(f"{tuple(matrix.shape)} is no matrix")
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
    for a, b in pairs.get(type(part), list)():
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"matrices of {tuple(a.shape)} and {tuple(b.shape)} do not fit together")


def _low_rank(alpha: float | None, down: Tensor, up: Tensor) -> LowRank:
    return LowRank(down, up, _scale(alpha, len(down)))


def _hadamard(alpha: float | None, hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b) -> Hadamard:
    return Hadamard(hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, _scale(alpha, len(hada_w1_b)))


def _kronecker(alpha: float | None, **by_role: Tensor) -> Kronecker:
    left, right = (
        tuple(by_role[role] for role in (f"lokr_{w}", f"lokr_{w}_a", f"lokr_{w}_b") if role in by_role)
        for w in ("w1", "w2")
    )
    if len(left) + len(right) != len(by_role) or not left or not right:
        raise ValueError("it is no LoKr")
    rank = len(right[1]) if len(right) == 2 else len(left[1]) if len(left) == 2 else None
    return Kronecker(left, right, 1.0 if rank is None else _scale(alpha, rank))  # whole factors have no rank: scale 1


def _finite(alpha: Tensor) -> float:
    if not math.isfinite(alpha.item()):
        raise ValueError(f"its alpha is {alpha.item()}")
    return alpha.item()


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def _check_size(place: LinearPlace, part: Part, into: int, model: str) -> None:
    if size_of(part) != (into, place.count):
        part_in, part_out = size_of(part)
        raise UserError(
            f"This LoRA was trained on another FLUX.2 flavour: {place.name} is {place.count}x{into} "
            f"in {model}, the LoRA's is {part_out}x{part_in}."
        )


def _in_order(place: LinearPlace, part: Part) -> list[tuple[int, Part]]:
    """The part with its first row; two halves in the model's order if the file has them in the opposite order."""
    if not place.swapped:
        return [(place.start, part)]
    half = place.count // 2
    try:
        return [(0, rows(part, half, half)), (half, rows(part, 0, half))]
    except ValueError as error:
        raise UserError(f"This LoRA's adapter at {place.name} cannot be cut in halves: {error}.") from error


def _joined(name: str, out: int, pieces: list[tuple[int, Part]]) -> Part:
    """One part for a Linear, joined from those of its rows, such as q, k and v."""
    if len(pieces) == 1 and size_of(pieces[0][1])[1] == out:
        return pieces[0][1]
    pieces = sorted(pieces, key=lambda piece: piece[0])
    ends = [start + size_of(part)[1] for start, part in pieces]
    if any(end > start for end, (start, _) in zip(ends, pieces[1:], strict=False)):
        raise UserError(f"This LoRA holds {name} both whole and in parts; it is no whole file of one LoRA.")
    return _fused(out, pieces)


def _fused(out: int, pieces: list[tuple[int, Part]]) -> Part:
    kinds = {type(part) for _, part in pieces}
    if kinds == {LowRank} and _alike(out, [p for _, p in pieces]):
        return _fused_low_rank(out, [p for _, p in pieces], [start for start, _ in pieces])
    if kinds == {Hadamard}:
        return _fused_hadamard(out, [p for _, p in pieces], [start for start, _ in pieces])
    return Split(out, tuple(start for start, _ in pieces), tuple(part for _, part in pieces))


def _alike(out: int, parts: list[LowRank]) -> bool:
    """Whether all rows have DoRA of the same form, or none has DoRA."""
    forms = {(part.magnitude is None, part.of_base) for part in parts}
    return len(forms) == 1 and (parts[0].magnitude is None or sum(size_of(part)[1] for part in parts) == out)


def _fused_low_rank(out: int, parts: list[LowRank], starts: list[int]) -> LowRank:
    complete = sum(size_of(part)[1] for part in parts) == out
    magnitudes = [part.magnitude for part in parts if part.magnitude is not None]
    magnitude = torch.cat(magnitudes) if magnitudes else None
    ups = [part.up * part.scale for part in parts]
    down = parts[0].down
    if complete and all(torch.equal(part.down, down) for part in parts):  # one adapter that was written as three
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
    matrix, column = torch.zeros(out, sum(block.shape[1] for block in blocks)), 0
    for start, block in zip(starts, blocks, strict=True):
        matrix[start : start + len(block), column : column + block.shape[1]] = block
        column += block.shape[1]
    return matrix


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is not a safetensors file; only safetensors LoRAs are loaded.")
    if not is_file(path):
        raise UserError(f"{path} is not there.")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path.name} has {path.stat().st_size >> 30} GB: that is no LoRA, but a whole model.")
    with safetensors_header.opened(path) as file:
        keys = list(file.keys())
        if len(keys) > MOST_TENSORS:
            raise UserError(f"{path.name} has {len(keys)} tensors: that is no LoRA.")
        return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}


def _scaled(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """The tensors with the scales of peft's ``config`` multiplied in."""
    scales, factors, scaled = peft_config.Scales(config), {}, {}
    for key, tensor in tensors.items():
        stem, role = parse(key)
        if role in _CARRIES_SCALE:
            if stem not in factors:
                factors[stem] = scales.of(bare_name(stem))
            tensor = tensor if factors[stem] == 1 else tensor.float() * factors[stem]
        scaled[key] = tensor
    return scaled
