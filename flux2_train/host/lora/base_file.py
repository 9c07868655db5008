"""A FLUX.2 transformer's file, read Linear by Linear without loading the model, and weights written in its formats.

ComfyUI's own quantised Linear reads and writes every format that core knows. One is built for each layer in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import comfy.ops
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor

from ... import safetensors_header
from ...adapters import diffusers
from ...adapters.names import FIRST, Sizes, dimensions_of, sizes_of
from ...errors import UserError
from ..loading import mapping, stored_formats

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OLD_NAMES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}  # of fp8 files before comfy_quant
BESIDE_WEIGHT = ("input_scale", "pre_quant_scale", "comfy_quant")
UNWRITABLE = frozenset({"awq_w4a16"})  # a calibration makes these formats: comfy-kitchen cannot quantise to them


class BaseFile:
    """The transformer in a safetensors file, as a context manager that closes the file.

    ``prefix`` stands before the transformer's names if the file is a full checkpoint. Raises UserError if the file is
    no safetensors file of a FLUX.2, or if this ComfyUI does not have the format of its weights.
    """

    def __init__(self, path: Path):
        self.path, self.header = path, safetensors_header.read(path)
        self.keys, self.metadata = list(self.header.tensors), self.header.metadata
        if diffusers.is_diffusers(self.keys):
            raise UserError(
                f"{path.name} is a FLUX.2 transformer in diffusers' names; here ComfyUI's are needed: use the file "
                "of the same model that ComfyUI's templates load."
            )
        first = next((key for key in self.keys if key.endswith(FIRST)), None)
        if first is None or not any(key.endswith("double_stream_modulation_img.lin.weight") for key in self.keys):
            raise UserError(f"{path.name} is not a FLUX.2 transformer in ComfyUI's names.")
        self.prefix = first.removesuffix(FIRST)
        stored_formats.require_known([path])
        self.sizes = self._sizes()
        self.file = mapping.opened(path)
        self.formats = self._formats()

    def __enter__(self) -> BaseFile:
        return self

    def __exit__(self, *_) -> None:
        self.file.__exit__(None, None, None)

    def _sizes(self) -> Sizes:
        shapes = {key.removeprefix(self.prefix): entry.shape for key, entry in self.header.tensors.items()}
        all_sizes = sizes_of(*dimensions_of(shapes, self.path.name))
        return {name: size for name, size in all_sizes.items() if f"{name}.weight" in shapes}

    def _formats(self) -> dict[str, dict]:
        """ComfyUI's description of each quantised layer, from its tensors or from the header."""
        endings = (mark := stored_formats.BESIDE, "scaled_fp8", ".scale_weight", ".scale_input")
        small = {key: self.file.get_tensor(key) for key in self.keys if key.endswith(endings)}
        converted, _ = comfy.utils.convert_old_quants(small, self.prefix, self.metadata)
        descriptions = {k.removesuffix(mark): v for k, v in converted.items() if k.endswith(mark)}
        # a header may name the layers with the prefix or without it
        return {k.removeprefix(self.prefix): json.loads(value.numpy().tobytes()) for k, value in descriptions.items()}

    def names_of(self, name: str) -> dict[str, str]:
        """The keys of a Linear's tensors in the file, by ComfyUI's names for them: ``weight``, ``weight_scale`` ..."""
        return self._by_layer.get(f"{self.prefix}{name}", {})

    @cached_property
    def _by_layer(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for key in self.keys:
            layer, _, own = key.rpartition(".")
            what = OLD_NAMES.get(own, own)
            if what.startswith("weight") or what in BESIDE_WEIGHT:
                found.setdefault(layer, {})[what] = key
        return found

    def linear(self, name: str) -> torch.nn.Module:
        """ComfyUI's Linear, loaded with the weight from the file."""
        state = {what: self.file.get_tensor(key) for what, key in self.names_of(name).items()}
        if name in self.formats:
            text = json.dumps(self.formats[name]).encode()
            state["comfy_quant"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        into, out = self.sizes[name]
        layer = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(into, out, bias=False, device="cpu")
        layer.load_state_dict(state, strict=False)
        return layer

    @contextmanager
    def weight(self, name: str) -> Iterator[Tensor]:
        """A Linear's weight (out, in) in fp32; ``adapters.dora.Weights``."""
        yield dequantised(self.linear(name))

    def stored_in(self, name: str) -> str:
        """The name of a Linear's format: ``nvfp4``, ``float8_e4m3fn``, ``BF16`` ..."""
        if name in self.formats:
            return self.formats[name]["format"]
        return self.header.tensors[f"{self.prefix}{name}.weight"].dtype


def dequantised(layer: torch.nn.Module) -> Tensor:
    """The weight of one of ComfyUI's Linears in fp32."""
    return layer.convert_weight(layer.weight.data).float()


def requantised(layer: torch.nn.Module, weight: Tensor) -> dict[str, Tensor]:
    """The tensors of ``weight`` (out, in) in the layer's own quantised format, under ComfyUI's names."""
    layer.set_weight(weight, seed=0)  # 0 rounds to nearest
    return {name: getattr(value, "data", value) for name, value in layer.state_dict().items()}


def scaled_fp8(weight: Tensor) -> dict[str, Tensor]:
    """The tensors of ``weight`` (out, in) in core's fp8 with one scale, as the official fp8 files have them."""
    layout = QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
    tensors = dict(QuantizedTensor.from_float(weight, layout, scale="recalculate").state_dict("weight"))
    note = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return {**tensors, "comfy_quant": note}


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` in ``dtype``; for 8-bit floats, which have no infinity, it is clamped to their range."""
    return weight.to(dtype) if dtype in FLOATS else weight.clamp(-(m := torch.finfo(dtype).max), m).to(dtype)
