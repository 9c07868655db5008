"""Storing a model's large matrices in fewer bits, in the quantised layouts that ComfyUI itself reads from files.

One tensor at a time comes out of the memory-mapped file and is quantised a few rows at a time, so the host never holds
more than the result and, for a moment, less than two such tensors. What is sensitive (embedders, modulation, norms,
final layer) stays as in the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import comfy.model_management
import comfy.quant_ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ... import safetensors_header as headers
from ...adapters import stream
from ...errors import UserError
from ...formats import FORMATS, Format
from ..system.heap import give_back
from . import reading, shards

# The Linears inside the blocks of a FLUX.2 transformer, and inside the layers of its text encoders.
MATRICES = re.compile(
    r"(.*\.)?((double|single)_blocks\.\d+\.((img|txt)_(attn\.(qkv|proj)|mlp\.[02])|linear[12])"
    r"|layers\.\d+\.(self_attn|mlp)\.\w+_proj)\.weight"
)
ROTATIONS = (256, 64, 16)  # widths of Hadamard rotation that ComfyUI's kernels have
TILE = 128  # rows that lie together in every layout: cuBLAS keeps scales of blocks in tiles of 128 rows
SLICE = 4 << 20  # bytes of rows in fp32 that are quantised together; nvfp4 takes eight times that meanwhile


def available() -> list[str]:
    """The names in FORMATS that the running ComfyUI can read, on the running torch."""
    return [name for name, format in FORMATS.items() if format.name in comfy.quant_ops.QUANT_ALGOS and _has(format)]


def _has(format: Format) -> bool:
    return not format.dtype or hasattr(torch, format.dtype)


def quantised(layer: str, weight: Tensor, precision: str) -> dict[str, Tensor]:
    """A Linear's weight (out, in) as the tensors of a file, by key, on the CPU. Computed where ``weight`` is."""
    format = FORMATS[precision]
    options, notes = dict(format.options), {"format": format.name}
    if format.rotated:
        options["convrot_groupsize"] = notes["convrot_groupsize"] = _rotation(weight.shape[1])
    largest = _largest(weight) if format.largest else None
    layout = comfy.quant_ops.QUANT_ALGOS[format.name]["comfy_tensor_layout"]

    def made(rows: Tensor) -> dict[str, Tensor]:
        scale = {} if largest is None else {"scale": largest.float().to(rows.device) / format.largest}
        return QuantizedTensor.from_float(rows.float(), layout, **options, **scale).state_dict(f"{layer}.weight")

    tensors = made(weight.to("meta"))
    if not weight.is_meta:
        tensors = _filled(tensors, map(made, _rows(weight)))
    tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)
    return tensors


def _largest(weight: Tensor) -> Tensor:
    return torch.stack([rows.abs().max() for rows in _rows(weight)]).max()


def _filled(forms: dict[str, Tensor], parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of these forms on the CPU, from one slice of their rows after the other.

    The result is there first: slices that wait to be joined would take its size again and leave holes in the heap.
    """
    found = {key: torch.empty_like(form, device="cpu") for key, form in forms.items()}
    begun = dict.fromkeys(found, 0)
    for part in parts:
        for key, tensor in part.items():
            target = found[key][begun[key] : begun[key] + len(tensor)] if tensor.ndim else found[key]
            target.copy_(tensor)
            begun[key] += len(tensor) if tensor.ndim else 0
    return found


def _rows(weight: Tensor) -> Sequence[Tensor]:
    """A matrix in slices that no layout notices, of a 16th at most; one without bytes whole."""
    if weight.is_meta:
        return [weight]
    most = min(SLICE // (4 * weight.shape[1]), len(weight) // 16)
    return weight.split(max(TILE, most // TILE * TILE))


def _rotation(width: int) -> int:
    return next(size for size in ROTATIONS if width % size == 0)


def stored(parts: Sequence[Path], precision: str, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model's files with its matrices quantised, one after the other; arithmetic on ``device``.

    Raises UserError as ``converted``.
    """
    yield from converted(reading.each(parts), precision, device)


def converted(
    tensors: Iterable[tuple[str, Tensor]], precision: str, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Tensors by key with the matrices among them quantised. Of tensors without bytes come such in the format's shapes.

    Raises UserError if the format is unknown to the running ComfyUI or does not fit the model's sizes.
    """
    if precision not in available():
        raise UserError(
            f"This ComfyUI cannot read {precision}; it has {', '.join(available())}. Update it or choose one."
        )
    for key, tensor in tensors:
        if tensor.ndim == 2 and MATRICES.fullmatch(key):
            _require_divisible(key, tensor, precision)
            weight = tensor if tensor.is_meta else tensor.to(device)
            yield from quantised(key.removesuffix(".weight"), weight, precision).items()
            if not weight.is_meta:
                give_back()  # what one matrix leaves in the heap is small, what all of them leave is more than a layer
        else:
            yield key, tensor


def _require_divisible(key: str, tensor: Tensor, precision: str) -> None:
    multiple = FORMATS[precision].multiple
    if tensor.shape[1] % multiple:
        raise UserError(f"{precision} needs rows of a multiple of {multiple} values; {key} has {tensor.shape[1]}.")


def device_for(via: str) -> torch.device:
    """Where quantising is computed: ``auto`` is ComfyUI's device. Raises UserError for a GPU that is not there."""
    device = torch.device("cpu") if via == "cpu" else comfy.model_management.get_torch_device()
    if via == "gpu" and device.type == "cpu":
        raise UserError("Quantising on the GPU was asked for, but ComfyUI runs on the CPU; choose 'auto' or 'cpu'.")
    return device


def kept(parts: Sequence[Path], precision: str, via: str, folder: Path) -> Path:
    """The quantised copy of a model in ``folder``, made on first use and one file; any ComfyUI loader reads it.

    Its name holds a key of the sources' content (header, size and time of change) and of the precision, so a changed
    source gets a new copy. It is written tensor by tensor, and is there whole or not at all.
    """
    stem, kind = shards.stem_of(parts[0]), re.sub(r"[^a-z0-9]", "", precision)
    target = folder / f"{stem}-{kind}-{_key(parts, precision)}.safetensors"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        names, metadata = reading.names(parts)
        scales = ("weight_scale", "weight_scale_2", "comfy_quant")
        names += [n.replace("weight", scale) for n in names if MATRICES.fullmatch(n) for scale in scales]
        stream.write(target, stored(parts, precision, device_for(via)), names, metadata)
    return target


def _key(parts: Sequence[Path], precision: str) -> str:
    """Changes with the row's ``repr``: whoever renames a field of Format has every kept copy made again."""
    found = hashlib.sha256(f"{precision} {FORMATS[precision]}".encode())
    for path in parts:
        with path.open("rb") as file:
            header = headers.raw(file) + file.read(8)
        state = path.stat()
        found.update(f" {state.st_size} {state.st_mtime_ns}".encode() + header)
    return found.hexdigest()[:12]
