"""Storing a model's large matrices in fewer bits, in the quantised layouts that ComfyUI itself reads from files.

The tensors are read from the memory-mapped file one by one and quantised a few rows at a time, so the host holds the
result and less than two original tensors at most. Sensitive layers (embedders, modulation, norms, final layer) stay as
in the file.
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

from ... import safetensors_header
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
ROTATIONS = (256, 64, 16)  # widths of the Hadamard rotation that ComfyUI's kernels support
TILE = 128  # slices are multiples of this many rows: cuBLAS stores block scales in tiles of 128 rows
SLICE = 4 << 20  # bytes, in fp32, of the rows that are quantised together; nvfp4 needs eight times that while it runs


def available() -> list[str]:
    """The names in FORMATS that this ComfyUI and this torch can read."""
    return [name for name, format in FORMATS.items() if format.name in comfy.quant_ops.QUANT_ALGOS and _has(format)]


def _has(format: Format) -> bool:
    return not format.dtype or hasattr(torch, format.dtype)


def quantised(layer: str, weight: Tensor, precision: str) -> dict[str, Tensor]:
    """A Linear's weight (out, in) as a file stores it, by key, on the CPU. Computed on ``weight``'s device."""
    format = FORMATS[precision]
    options, notes = dict(format.options), {"format": format.name}
    if format.rotated:
        options["convrot_groupsize"] = notes["convrot_groupsize"] = _rotation(weight.shape[1])
    largest = _largest(weight) if format.largest else None
    layout = comfy.quant_ops.QUANT_ALGOS[format.name]["comfy_tensor_layout"]

    def quantise_rows(rows: Tensor) -> dict[str, Tensor]:
        scale = {} if largest is None else {"scale": largest.float().to(rows.device) / format.largest}
        return QuantizedTensor.from_float(rows.float(), layout, **options, **scale).state_dict(f"{layer}.weight")

    tensors = quantise_rows(weight.to("meta"))
    if not weight.is_meta:
        tensors = _joined(tensors, map(quantise_rows, _rows(weight)))
    tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)
    return tensors


def _largest(weight: Tensor) -> Tensor:
    return torch.stack([rows.abs().max() for rows in _rows(weight)]).max()


def _joined(forms: dict[str, Tensor], slices: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of these forms on the CPU, filled with slices of their rows in order.

    The result is allocated first: collecting the slices and joining them would need its size twice, and leave holes in
    the heap.
    """
    result = {key: torch.empty_like(form, device="cpu") for key, form in forms.items()}
    filled = dict.fromkeys(result, 0)
    for each in slices:
        for key, tensor in each.items():
            target = result[key][filled[key] : filled[key] + len(tensor)] if tensor.ndim else result[key]
            target.copy_(tensor)
            filled[key] += len(tensor) if tensor.ndim else 0
    return result


def _rows(weight: Tensor) -> Sequence[Tensor]:
    """A matrix in slices of rows that do not change the result, at most a 16th each; a meta tensor is one slice."""
    if weight.is_meta:
        return [weight]
    most = min(SLICE // (4 * weight.shape[1]), len(weight) // 16)
    return weight.split(max(TILE, most // TILE * TILE))


def _rotation(width: int) -> int:
    return next(size for size in ROTATIONS if width % size == 0)


def stored(parts: Sequence[Path], precision: str, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model's files with its matrices quantised on ``device``, one after the other.

    Raises UserError as ``converted``.
    """
    yield from converted(reading.each(parts), precision, device)


def converted(
    tensors: Iterable[tuple[str, Tensor]], precision: str, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Tensors by key, with the matrices quantised. Meta tensors give meta tensors in the shapes of the format.

    Raises UserError if this ComfyUI does not know the format, or if the model's sizes do not fit it.
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
                give_back()  # one matrix leaves little in the heap, but all of them leave more than a layer
        else:
            yield key, tensor


def _require_divisible(key: str, tensor: Tensor, precision: str) -> None:
    multiple = FORMATS[precision].multiple
    if tensor.shape[1] % multiple:
        raise UserError(f"{precision} needs rows of a multiple of {multiple} values; {key} has {tensor.shape[1]}.")


def device_for(via: str) -> torch.device:
    """The device that quantises: ``auto`` is ComfyUI's. Raises UserError if a GPU is asked for and there is none."""
    device = torch.device("cpu") if via == "cpu" else comfy.model_management.get_torch_device()
    if via == "gpu" and device.type == "cpu":
        raise UserError("Quantising on the GPU was asked for, but ComfyUI runs on the CPU; choose 'auto' or 'cpu'.")
    return device


def kept(parts: Sequence[Path], precision: str, via: str, folder: Path) -> Path:
    """The path of a model's quantised copy in ``folder``, one file that any ComfyUI loader reads; made on first use.

    Its name holds a hash of the precision and of the sources' headers, sizes and times of change, so a changed source
    gets a new copy. It is written tensor by tensor; it exists either complete or not at all.
    """
    stem, kind = shards.stem_of(parts[0]), re.sub(r"[^a-z0-9]", "", precision)
    target = folder / f"{stem}-{kind}-{_key(parts, precision)}.safetensors"
    if not _is_whole(target):
        folder.mkdir(parents=True, exist_ok=True)
        names, metadata = reading.names(parts)
        scales = ("weight_scale", "weight_scale_2", "comfy_quant")
        names += [n.replace("weight", scale) for n in names if MATRICES.fullmatch(n) for scale in scales]
        stream.write(target, stored(parts, precision, device_for(via)), names, metadata)
    return target


def _is_whole(path: Path) -> bool:
    """Whether a file is there and holds all that its header speaks of. What is cut or empty is made again."""
    try:
        return bool(safetensors_header.read(path).tensors)
    except UserError:
        return False


def _key(parts: Sequence[Path], precision: str) -> str:
    """Covers the row's ``repr``: whoever renames a field of Format makes every kept copy be made again."""
    digest = hashlib.sha256(f"{precision} {FORMATS[precision]}".encode())
    for path in parts:
        with path.open("rb") as file:
            header = safetensors_header.raw(file) + file.read(8)
        state = path.stat()
        digest.update(f" {state.st_size} {state.st_mtime_ns}".encode() + header)
    return digest.hexdigest()[:12]
