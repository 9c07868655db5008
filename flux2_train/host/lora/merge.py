"""LoRAs merged into a model's file, and LoRA files converted. Only one layer of the model is loaded at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import comfy.model_management
import torch
from torch import Tensor, nn

from ...adapters import dora, files, others, peft_config, read, stream, write
from ...adapters.names import Sizes, bare_name, sizes_of
from ...adapters.parts import Part
from ...bounded import reason
from ...errors import UserError
from ...flavours import FLAVOURS
from ...names import counted
from ..system.heap import freed_at_once
from .base_file import FLOATS, UNWRITABLE, BaseFile, dequantised, requantised, rounded, scaled_fp8

SOURCE, FP8 = "source", "fp8"
PRECISIONS = (SOURCE, *write.DTYPES, FP8)


@dataclass
class Merged:
    """What a merge did.

    ``layers`` Linears were changed, ``formats`` counts them by format. ``lost`` and ``wanted`` are the sums of
    ``|stored - exact|^2`` and ``|exact - base|^2`` over the merged weights.
    """

    path: Path
    layers: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    lost: float = 0.0
    wanted: float = 0.0

    @property
    def error(self) -> float:
        """``|stored - exact| / |exact - base|`` over all merged weights."""
        return (self.lost / self.wanted) ** 0.5 if self.wanted else 0.0

    def __str__(self) -> str:
        stored = ", ".join(f"{count} in {format}" for format, count in sorted(self.formats.items()))
        layers = counted(self.layers, "layer")
        return f"{self.path.name}: {layers} merged ({stored}), rounding moved the change by {self.error:.1%}"


@dataclass(frozen=True)
class _Change:
    """One LoRA at a strength, for the model being merged."""

    parts: dict[str, Part]
    others: dict[str, Tensor]
    strength: float


def merge(source: Path, loras: Sequence[tuple[Path, float]], output: Path, precision: str = SOURCE) -> Merged:
    """Merge ``loras`` (file, strength) in their order into ``source``, a FLUX.2 transformer, and write ``output``.

    ``precision`` is ``source`` (each layer keeps its own), bf16, fp16, fp32, or fp8 with one scale per layer in the
    blocks and bf16 elsewhere. Layers that no LoRA changes are copied bit by bit if their precision stays. A changed
    quantised layer is dequantised, changed and quantised again; the result says what that lost. Peak memory is a few
    layers. Raises UserError for a LoRA that does not fit, for an existing ``output``, and for layers that scale their
    input (AWQ) or whose format cannot be written.
    """
    if precision not in PRECISIONS:
        raise UserError(f"Unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if output.exists():
        raise UserError(_exists(output))
    with BaseFile(source) as base, torch.no_grad(), freed_at_once(comfy.model_management.get_torch_device()):
        changes = [_Change(*_read(base, path), strength) for path, strength in loras]
        _require_mergeable(base, changes, precision)
        report = Merged(output)
        tensors = _tensors(base, changes, precision, report)
        names = [*base.keys, *(f"{base.prefix}{n}.{t}" for n in base.sizes for t in ("weight_scale", "comfy_quant"))]
        _write(output, tensors, names, _metadata(base, loras, precision))
    return report


def _write(output: Path, tensors: Iterator[tuple[str, Tensor]], names: list[str], metadata: dict[str, str]) -> None:
    """Raises UserError if the file exists, also if it has appeared meanwhile, or cannot be written."""
    try:
        stream.write(output, tensors, names, metadata, new=True)
    except FileExistsError as error:
        raise UserError(_exists(output)) from error
    except OSError as error:
        raise UserError(
            f"{output.name} could not be written to {output.parent} ({reason(error)}): make room there, or make it a "
            "folder that can be written."
        ) from error


def _exists(output: Path) -> str:
    return f"{output.name} exists already; choose another name, nothing is overwritten."


def convert(
    source: Path,
    output: Path,
    format: str = "comfyui",
    precision: str = "bf16",
    plain_rank: int = 0,
    base: Path | None = None,
    allow_unmatched: bool = False,
) -> str:
    """Write the LoRA file ``source`` in another format, and return one line on what was done.

    ``output`` is a file, or a folder for format 'peft'. ``plain_rank`` above 0 writes plain LoRA of at most that rank.
    ``base``, the transformer's file, is needed if a DoRA changes its form. Raises UserError for parts that the format
    cannot hold, and for keys that match no FLUX.2 layer unless those are allowed.
    """
    tensors = read.load(source)
    sizes, name = _sizes_for(tensors, base)
    parts, unmatched = read.read(tensors, sizes, name)
    if not allow_unmatched or not parts:
        read.require_matched(unmatched, len(tensors), name)
    device = comfy.model_management.get_torch_device()
    with BaseFile(base) if base else nullcontext() as file:
        exported = files.export(parts, format, precision, plain_rank, file.weight if file else _no_base, device)
    metadata = {k: v for k, v in read.header(source).items() if k != peft_config.HEADER}
    path = files.save_as(exported, output, {**metadata, **exported.metadata})
    return f"{path.name}: {counted(len(parts), 'layer')} as {format}, {precision}{exported.note}"


def _no_base(name: str) -> NoReturn:
    raise UserError(f"The DoRA at {name} depends on the weights it sits on: give the base model's file too.")


def _sizes_for(tensors: dict[str, Tensor], base: Path | None) -> tuple[Sizes, str]:
    """The sizes of the Linears, and whose they are: the base's, else those of the first flavour that the LoRA fits."""
    if base:
        with BaseFile(base) as file:
            return file.sizes, base.name
    errors = []
    for row in FLAVOURS.values():
        sizes = sizes_of(*row.sizes)
        try:
            parts, unmatched = read.read(tensors, sizes, row.name)
        except UserError as error:
            errors.append(error)
            continue
        if parts and not any(".double_blocks." in key or ".single_blocks." in key for key in map(_dotted, unmatched)):
            return sizes, row.name
    raise errors[-1] if errors else UserError("This LoRA fits no FLUX.2 flavour; give the base model's file too.")


def _dotted(key: str) -> str:
    return f".{bare_name(key)}".replace("transformer_blocks", "double_blocks")


def _read(base: BaseFile, path: Path) -> tuple[dict[str, Part], dict[str, Tensor]]:
    tensors = read.load(path)
    parts, unmatched = read.read(tensors, base.sizes, base.path.name)
    weights = [key.removeprefix(base.prefix) for key in base.keys if key.endswith((".weight", ".scale"))]
    norms = others.norm_changes(unmatched, weights)
    target_of = {key: name for key, name in norms.items() if _fits(base, name, tensors[key])}
    read.require_matched([key for key in unmatched if key not in target_of], len(tensors), base.path.name)
    return parts, {name: tensors[key] for key, name in target_of.items()}


def _fits(base: BaseFile, name: str, change: Tensor) -> bool:
    return list(change.shape) == base.file.get_slice(f"{base.prefix}{name}").get_shape()


def _require_mergeable(base: BaseFile, changes: list[_Change], precision: str) -> None:
    for name in {name for change in changes for name in change.parts}:
        if "pre_quant_scale" in base.names_of(name):
            raise UserError(
                f"{name} of {base.path.name} scales its input (AWQ), so a LoRA cannot be merged into it; merge into "
                "the bf16 model, or use the LoRA in bypass."
            )
        if precision == SOURCE and base.stored_in(name) in UNWRITABLE:
            raise UserError(
                f"{name} of {base.path.name} is stored as {base.stored_in(name)}, a format that nothing here can "
                "write; choose another precision for the merged file, or use the LoRA in bypass."
            )


def _tensors(base: BaseFile, changes: list[_Change], precision: str, report: Merged) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the merged file under its key."""
    touched = {name for change in changes for name in change.parts}
    keeps = precision == SOURCE
    rewritten = {n for n in base.sizes if n in touched or (not keeps and (n in base.formats or precision == FP8))}
    done = {key for name in rewritten for key in base.names_of(name).values()}
    for name in base.sizes:
        if name in rewritten:
            yield from _linear(base, name, changes, precision, report)
    for key in base.keys:
        if key not in done and (keeps or key != f"{base.prefix}scaled_fp8"):
            yield key, _other(base, key, changes, precision)


def _linear(
    base: BaseFile, name: str, changes: list[_Change], precision: str, report: Merged
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a Linear with the LoRAs merged in, under their keys in the file."""
    device = comfy.model_management.get_torch_device()
    layer, keys = base.linear(name), base.names_of(name)
    before = dequantised(layer).to(device)
    weight = before.clone()
    for change in changes:
        if name in change.parts:
            weight.add_(dora.change(change.parts[name], weight), alpha=change.strength)
    weight = weight.cpu()
    tensors, format = _stored(base, name, layer, weight, precision)
    _note(report, before.cpu(), weight, _reread(layer, tensors), format)
    for what, tensor in tensors.items():
        if precision != SOURCE:
            yield f"{base.prefix}{name}.{what}", tensor
        elif what in keys:  # a file that describes its formats in the header has no such tensors
            yield keys[what], tensor


def _stored(
    base: BaseFile, name: str, layer: nn.Module, weight: Tensor, precision: str
) -> tuple[dict[str, Tensor], str]:
    """A Linear's tensors in the requested precision, by ComfyUI's names, and the name of their format."""
    if precision == FP8 and "_blocks." in name:
        return scaled_fp8(weight), "float8_e4m3fn"
    if precision == SOURCE and name in base.formats:
        return requantised(layer, weight), base.stored_in(name)
    dtype = base.file.get_tensor(base.names_of(name)["weight"]).dtype if precision == SOURCE else _dtype(precision)
    return {"weight": rounded(weight, dtype)}, str(dtype).removeprefix("torch.")


def _dtype(precision: str) -> torch.dtype:
    return write.DTYPES["bf16" if precision == FP8 else precision]


def _reread(layer: nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    """The weight in fp32 that these tensors stand for, as a model that loads them computes with it."""
    weight = tensors["weight"]
    if "comfy_quant" not in tensors:
        return weight.float()
    if not weight.dtype.is_floating_point or len(tensors) > 2 or hasattr(layer, "quant_format"):
        fresh = type(layer)(layer.in_features, layer.out_features, bias=False, device="cpu")
        fresh.load_state_dict(dict(tensors), strict=False)
        return dequantised(fresh)
    return weight.float() * tensors["weight_scale"].float()


def _note(report: Merged, before: Tensor, wanted: Tensor, stored: Tensor, format: str) -> None:
    moved = torch.linalg.vector_norm(wanted - before).item()
    if moved:
        report.layers += 1
        report.formats[format] = report.formats.get(format, 0) + 1
        report.wanted += moved**2
        report.lost += torch.linalg.vector_norm(stored - wanted).item() ** 2


def _other(base: BaseFile, key: str, changes: list[_Change], precision: str) -> Tensor:
    """A tensor of no rewritten Linear, with the LoRAs' changes of it, in the requested precision."""
    tensor = base.file.get_tensor(key)
    name = key.removeprefix(base.prefix)
    for change in changes:
        if name in change.others:
            tensor = (tensor.float() + change.strength * change.others[name].float()).to(tensor.dtype)
    if precision == SOURCE or not key.startswith(base.prefix) or not tensor.dtype.is_floating_point:
        return tensor
    return tensor.to(_dtype(precision)) if tensor.dtype in FLOATS or tensor.ndim > 1 else tensor


def _metadata(base: BaseFile, loras: Sequence[tuple[Path, float]], precision: str) -> dict[str, str]:
    kept = {k: v for k, v in base.metadata.items() if precision == SOURCE or k != "_quantization_metadata"}
    merged = json.dumps([{"file": path.name, "strength": strength} for path, strength in loras])
    return {**kept, "flux2_train.merged": merged}
