"""The weights of a model for Load FLUX.2: first their names, shapes and dtypes without reading, then the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ... import safetensors_header
from ...errors import UserError
from ...formats import AS_IN_FILE, DTYPES
from ...names import counted
from . import deferred, files, quantise, reading
from .awaited import is_awaited


@dataclass(frozen=True)
class WeightSource:
    """Where a model's weights come from: its files (``parts``), and the precision to store them in.

    Quantising is computed on the device that ``via`` names. If ``kept`` is a folder, the quantised copy is kept there.
    """

    parts: tuple[Path, ...]
    precision: str
    via: str = "auto"
    kept: Path | None = None

    def outline(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors by ComfyUI's names, without bytes, and the metadata.

        Raises UserError as ``quantise.converted``.
        """
        tensors, metadata = reading.outline(self.parts)
        if self.precision in quantise.FORMATS:
            quantise.device_for(self.via)  # raises now, not at first use, if the GPU asked for does not exist
            return dict(quantise.converted(tensors.items(), self.precision, deferred.META)), metadata
        return tensors, metadata

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors by ComfyUI's names, and the metadata: mapped from files, or quantised now."""
        if self.precision in quantise.FORMATS and self.kept is None:
            return dict(quantise.stored(self.parts, self.precision, quantise.device_for(self.via))), {}
        return reading.mapped(self.files())

    def copies(self) -> bool:
        """Whether ``read`` makes new tensors instead of mapping: to quantise, or to convert diffusers' names."""
        return self.precision in quantise.FORMATS or reading.joins(self.parts)

    def files(self) -> tuple[Path, ...]:
        """The files to map the weights from; the kept quantised copy is made first if it does not exist."""
        if self.precision in quantise.FORMATS and self.kept is not None:
            return (quantise.kept(self.parts, self.precision, self.via, self.kept),)
        return self.parts


def assign(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make ``tensors`` the weights of a module, without copying those that already have the module's dtype.

    ``tensors`` is emptied layer by layer, because ComfyUI copies the scales of quantised weights: the originals go.
    """
    for layer in module.modules():
        if "factory_kwargs" in layer.__dict__:  # core's quantised layers move loaded weights to this device
            layer.factory_kwargs["device"] = None
    for name, weight in module.named_parameters():
        if name in tensors and not isinstance(weight, QuantizedTensor):
            tensors[name] = tensors[name].to(weight.dtype)
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        layer_name, _, own_name = name.rpartition(".")
        by_layer.setdefault(layer_name, {})[own_name] = tensors.pop(name)
    for layer_name, layer in module.named_modules():
        _load(layer, by_layer.pop(layer_name, {}))
    for layer in module.modules():  # weights that the file lacks become zeros; core has logged their names
        for name, weight in layer._parameters.items():
            if weight is not None and (weight.is_meta or is_awaited(weight)):
                zeros = torch.zeros(weight.shape, dtype=weight.dtype)
                layer._parameters[name] = nn.Parameter(zeros, requires_grad=False)


def as_stored(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Whether ``assign`` uses these tensors unchanged, so that mapped ones are not read.

    It does unless a weight has another dtype in the file, or has several scales, which ComfyUI copies.
    """
    return all(
        _has_one_scale(weight) if isinstance(weight, QuantizedTensor) else weight.dtype == tensors[name].dtype
        for name, weight in module.named_parameters()
        if name in tensors
    )


def _has_one_scale(weight: QuantizedTensor) -> bool:
    names, _ = weight.__tensor_flatten__()
    return all(getattr(weight, name).numel() == 1 for name in names if name != "_qdata")


def _load(layer: nn.Module, own: dict[str, Tensor]) -> None:
    """Assign a module's ``own`` tensors: by its ``load_state_dict``, or one by one if it contains other modules."""
    if own and not any(True for _ in layer.children()):
        layer.load_state_dict(own, strict=False, assign=True)
        return
    for name, tensor in own.items():
        if layer._parameters.get(name) is not None:
            layer._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        elif name in layer._buffers:
            layer._buffers[name] = tensor


def require_whole(module: nn.Module, names: set[str], file: str) -> None:
    """Raise UserError if the file does not hold all of the module's weights."""
    missing = [name for name, _ in module.named_parameters() if name not in names]
    if missing:
        raise UserError(f"{file} lacks {counted(len(missing), 'weight')}, {missing[0]} first: download it again.")


def require_unquantised(path: Path, precision: str) -> None:
    """Raise UserError if another precision is asked of a quantised file, or the file is no safetensors file."""
    if precision != AS_IN_FILE and _is_quantised(safetensors_header.read(path)):
        raise UserError(f"{path.name} is already quantised: set the precision to 'as in file', not {precision!r}.")


def _is_quantised(header: safetensors_header.Header) -> bool:
    """True if the file holds quantised tensors: fp8, int8 or packed weights, or their scales.

    One-dimensional byte tensors of other names are text, such as the tokenizer in Mistral's file.
    """
    scales = (".comfy_quant", ".weight_scale", ".scale_weight")
    return any(
        key.endswith(scales) or (entry.dtype in ("F8_E4M3", "F8_E5M2", "I8", "U8") and len(entry.shape) > 1)
        for key, entry in header.tensors.items()
    )


def kept_folder(kind: str) -> Path:
    """The folder that keeps quantised copies of ComfyUI's models of that kind."""
    return files.model_folder(kind) / "flux2_train_quantised"


def dtype_of(precision: str) -> torch.dtype | None:
    """The dtype of a plain precision; ``None`` for 'as in file' and for quantised ones."""
    name = DTYPES.get(precision)
    return getattr(torch, name) if name else None


def narrowed(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Tensors cast to the dtype of a plain precision; integer tensors, such as text, stay as they are."""
    dtype = dtype_of(precision)
    return tensors if dtype is None else {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
