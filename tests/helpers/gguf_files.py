"""GGUF files of a small FLUX.2, as ComfyUI-GGUF's converter and quantiser write them, and that pack's own loader."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.shapes import flux2_shapes

HIDDEN, CONTEXT, SINGLE = 256, 96, 2  # K-quants have rows of a multiple of 256 values
BLOCKS = ["Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "BF16", "F16"]
OUTER = ["F32", "F16", "BF16"]
# Where the fp16 factors lie in a block of a K-quant, and its bytes (ggml-common.h). gguf can read these formats, but
# only llama.cpp writes them: here their blocks are drawn at random.
FACTORS = {"Q6_K": (208,), "Q5_K": (0, 2), "Q4_K": (0, 2), "Q3_K": (108,), "Q2_K": (80, 82)}


def pack():
    """The checkout of ComfyUI-GGUF that COMFYUI_GGUF names, imported as ComfyUI imports it; skips without one."""
    named = os.environ.get("COMFYUI_GGUF")
    if not named:
        pytest.skip("COMFYUI_GGUF names no checkout of ComfyUI-GGUF")
    pytest.importorskip("gguf", reason="ComfyUI-GGUF needs the package gguf")
    name = "comfyui_gguf"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, Path(named) / "__init__.py", submodule_search_locations=[named]
        )
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def names_and_shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Every weight under the names of Black Forest Labs, which GGUF files of FLUX.2 keep."""
    shapes = flux2_shapes(HIDDEN, 1, SINGLE, CONTEXT)
    return [(name.replace("_norm.weight", "_norm.scale"), shape) for name, shape in shapes]


def write(path: Path, blocks: str, outer: str, arch: str | None = "flux", prefix: str = "") -> dict[str, torch.Tensor]:
    """Write a file whose blocks' matrices are in the one format and whose other matrices are in the other.

    Vectors are F32, as the converter has them. Returns the weights that the file means, dequantised by gguf in fp32,
    without ``prefix``. Without ``arch`` the file is as stable-diffusion.cpp writes it.
    """
    import gguf

    rng, meant = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(path, arch or "flux")
    if arch is None:
        writer.kv_data[0].pop("general.architecture")
    for name, shape in names_and_shapes():
        format = "F32" if len(shape) < 2 else blocks if "_blocks." in name else outer
        kind = gguf.GGMLQuantizationType[format]
        value = rng.standard_normal(shape, np.float32) * shape[-1] ** -0.5 if len(shape) > 1 else np.ones(shape, "f4")
        data = _drawn(rng, shape, format) if format in FACTORS else gguf.quants.quantize(value, kind)
        writer.add_tensor(f"{prefix}{name}", data, raw_dtype=kind)
        meant[name] = torch.from_numpy(gguf.quants.dequantize(data, kind).reshape(shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    """A file's weights in fp32 as ComfyUI-GGUF dequantises them."""
    read, convert = pack().nodes.gguf_sd_loader, pack().dequant.dequantize_tensor
    return {name: convert(weight, torch.float32).as_subclass(torch.Tensor) for name, weight in read(str(path)).items()}


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], format: str) -> np.ndarray:
    """Random blocks of a K-quant whose weights are about as large as a network's."""
    import gguf

    kind = gguf.GGMLQuantizationType[format]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // values, size), np.uint8)

    def with_factor(factor: float) -> np.ndarray:
        for place in FACTORS[format]:
            blocks[..., place : place + 2] = np.array([factor], "<f2").view(np.uint8)
        return blocks.reshape(shape[0], -1)

    return with_factor(shape[-1] ** -0.5 / gguf.quants.dequantize(with_factor(1.0), kind).std())
