"""The weights of a model that Load FLUX.2 names: what they will be, without reading them, and then they themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ... import safetensors_header as headers
from ...errors import UserError
from ...formats import AS_IN_FILE, DTYPES
from . import deferred, files, quantise, reading
from .awaited import is_awaited


@dataclass(frozen=True)
class WeightSource:
    """The files of a model and how its weights are to be stored.

    Quantising is computed on the device ``via`` names; its result is kept as a file in ``kept``, if that is a folder.
    """

    parts: tuple[Path, ...]
    precision: str
    via: str = "auto"
    kept: Path | None = None

    def outline(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors by ComfyUI's names, without bytes, and its metadata.

        Raises UserError as ``quantise.converted``.
        """
        found, metadata = reading.outline(self.parts)
        if self.precision in quantise.FORMATS:
            quantise.device_for(self.via)  # a GPU that is not there is told now, not at the first use
            return dict(quantise.converted(found.items(), self.precision, deferred.META)), metadata
        return found, metadata

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors by ComfyUI's names, and the file's metadata: mapped, or just quantised."""
        if self.precision in quantise.FORMATS and self.kept is None:
            return dict(quantise.stored(self.parts, self.precision, quantise.device_for(self.via))), {}
        return reading.mapped(self.files())

    def copies(self) -> bool:
        """Whether ``read`` makes tensors of its own: quantised ones, or of a transformer under diffusers' names."""
        return self.precision in quantise.FORMATS or reading.joins(self.parts)

    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights as they are to be stored; a kept one is made if it is not there."""
        if self.precision in quantise.FORMATS and self.kept is not None:
            return (quantise.kept(self.parts, self.precision, self.via, self.kept),)
        return self.parts


def assign(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make ``tensors`` the weights of a module, without a copy where they have the dtype that it is to store.

    Layer by layer, and out of ``tensors``: ComfyUI copies the scales of quantised weights.
    """
    for place in module.modules():
        if "factory_kwargs" in place.__dict__:  # where core's quantised layers put what they are given
            place.factory_kwargs["device"] = None
    for name, weight in module.named_parameters():
        if name in tensors and not isinstance(weight, QuantizedTensor):
            tensors[name] = tensors[name].to(weight.dtype)
    by_place: dict[str, dict[str, Tensor]] = {}
    for name in list(tensors):
        place, _, own = name.rpartition(".")
        by_place.setdefault(place, {})[own] = tensors.pop(name)
    for name, place in module.named_modules():
        _load(place, by_place.pop(name, {}))
    for place in module.modules():  # what the file lacks, which core has named
        for name, weight in place._parameters.items():
            if weight is not None and (weight.is_meta or is_awaited(weight)):
                zeros = torch.zeros(weight.shape, dtype=weight.dtype)
                place._parameters[name] = nn.Parameter(zeros, requires_grad=False)


def as_stored(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Whether ``assign`` gives a module these tensors as they are, so that mapped ones are not read.

    It does unless a weight has another dtype in the file, or has scales of which ComfyUI makes copies.
    """
    return all(
        _has_one_scale(weight) if isinstance(weight, QuantizedTensor) else weight.dtype == tensors[name].dtype
        for name, weight in module.named_parameters()
        if name in tensors
    )


def _has_one_scale(weight: QuantizedTensor) -> bool:
    names, _ = weight.__tensor_flatten__()
    return all(getattr(weight, name).numel() == 1 for name in names if name != "_qdata")


def _load(place: nn.Module, own: dict[str, Tensor]) -> None:
    """What lies in a module itself: its own way of reading it, unless it would read that of its parts as well."""
    if own and not any(True for _ in place.children()):
        place.load_state_dict(own, strict=False, assign=True)
        return
    for name, tensor in own.items():
        if place._parameters.get(name) is not None:
            place._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        elif name in place._buffers:
            place._buffers[name] = tensor


def require_whole(module: nn.Module, names: set[str], file: str) -> None:
    """Raise UserError if a module has weights that are not among those of its file."""
    missing = [name for name, _ in module.named_parameters() if name not in names]
    if missing:
        raise UserError(f"{file} lacks {len(missing)} weights, {missing[0]} first: download it again.")


def require_unquantised(path: Path, precision: str) -> None:
    """Raise UserError if a file is asked for in another precision and is quantised, or is no safetensors file."""
    if precision != AS_IN_FILE and _is_quantised(headers.read(path)):
        raise UserError(f"{path.name} is already quantised: set the precision to 'as in file', not {precision!r}.")


def _is_quantised(header: headers.Header) -> bool:
    """True if the file holds quantised tensors: fp8, int8 or packed weights, or their scales.

    Other vectors of bytes are text: Mistral's tokenizer lies in its file.
    """
    scales = (".comfy_quant", ".weight_scale", ".scale_weight")
    return any(
        key.endswith(scales) or (entry.dtype in ("F8_E4M3", "F8_E5M2", "I8", "U8") and len(entry.shape) > 1)
        for key, entry in header.tensors.items()
    )


def kept_folder(kind: str) -> Path:
    """Where quantised copies of ComfyUI's models of that kind are kept."""
    return files.model_folder(kind) / "flux2_train_quantised"


def dtype_of(precision: str) -> torch.dtype | None:
    """What a plain precision casts weights to, ``None`` for one that leaves their dtype to the file or quantises."""
    name = DTYPES.get(precision)
    return getattr(torch, name) if name else None


def narrowed(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Tensors in the dtype of a precision; bytes, which hold text, as they are."""
    dtype = dtype_of(precision)
    return tensors if dtype is None else {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
