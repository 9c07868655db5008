"""How many bytes are alive while a quantised matrix becomes numbers, against what the planner takes for it."""

import importlib

import pytest
import torch
from comfy_kitchen.backends.eager import quantization
from counted import Live
from support import QUANTISED, tiny_flux2

from flux2_train.formats import COSTLIEST, dequantising
from flux2_train.host import sizes
from flux2_train.host.borrowed.borrow import linears

FORMATS = {
    "scaled_fp8_e4m3": "fp8 (scaled)", "mxfp8": "mxfp8", "int8": "int8", "nvfp4": "nvfp4", "convrot_w4a4": "int4"
}  # fmt: skip


def weight_of(format):
    assert format in QUANTISED
    return linears(tiny_flux2(format=format))["single_blocks.0.linear1"].weight


def by_plain_torch(format, weight):
    """As comfy-kitchen does it without a kernel, called beside its dispatcher, inside of which nothing can count."""
    eager, data, params, bf16 = quantization, weight._qdata, weight._params, torch.bfloat16
    return {
        "scaled_fp8_e4m3": lambda: eager.dequantize_per_tensor_fp8(data, params.scale, bf16),
        "mxfp8": lambda: eager.dequantize_mxfp8(data, params.scale, bf16),
        "int8": lambda: eager.dequantize_int8_simple_dtype(data, params.scale, eager.DTYPE_TO_CODE[bf16]),
        "nvfp4": lambda: eager.dequantize_nvfp4(data, params.scale, params.block_scale, bf16),
        "convrot_w4a4": lambda: weight.to(bf16).dequantize(),
    }[format]()


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_alive_without_a_kernel(format):
    """For each number, while it becomes bf16, which a card computes with."""
    weight = weight_of(format)
    with torch.inference_mode(), Live() as live:
        plain = by_plain_torch(format, weight)
    assert plain.dtype == torch.bfloat16 and plain.shape == weight.shape
    planned, found = dequantising(FORMATS[format]) * 2, live.most / plain.numel()
    assert 0.9 * planned <= found <= 1.05 * planned, found


@pytest.mark.parametrize("format, name", FORMATS.items())
def test_the_format_of_a_loaded_model_is_seen(format, name):
    model = tiny_flux2(format=format)
    assert sizes.precision_of(model) == name


def by_w4a8(weight):
    params = weight._params
    codebook = (params.codebook, params.correction, params.group_size, params.convrot_groupsize)
    eager = importlib.import_module("comfy_kitchen.backends.eager.w4a8_int8")
    return eager.dequantize_w4a8_int8_weight(weight._qdata, params.scale, params.s_channel, *codebook, torch.bfloat16)


@pytest.mark.long
def test_w4a8_has_no_row_and_takes_no_more_than_is_planned_for_it():
    weight = weight_of("w4a8")
    with torch.inference_mode(), Live() as live:
        plain = by_w4a8(weight)
    assert sizes.precision_of(tiny_flux2(format="w4a8")) == COSTLIEST
    assert live.most / plain.numel() <= dequantising(COSTLIEST) * 2, live.most / plain.numel()


def test_awq_takes_no_more_than_is_planned_for_a_format_without_a_row():
    kitchen = pytest.importorskip("comfy_kitchen.tensor")
    if not hasattr(kitchen, "TensorCoreAWQW4A16Layout"):
        pytest.skip("this comfy-kitchen has no awq_w4a16")
    layout, (out, into) = kitchen.TensorCoreAWQW4A16Layout, (1152, 256)
    scale = torch.ones(into // 64, out, dtype=torch.bfloat16)
    params = layout.Params(scale=scale, zeros=scale, orig_dtype=torch.bfloat16, orig_shape=(out, into))
    stored = torch.zeros(out, into // 2, dtype=torch.int8)
    with torch.inference_mode(), Live() as live:
        plain = layout.dequantize(stored, params)
    assert live.most / plain.numel() <= dequantising(COSTLIEST) * 2, live.most / plain.numel()


def test_a_kernel_needs_its_backend(monkeypatch):
    kitchen = pytest.importorskip("comfy_kitchen")
    there = {"available": True, "disabled": False, "capabilities": ["dequantize_nvfp4"]}
    for cuda, expected in ((there, True), ({**there, "disabled": True}, False), ({**there, "capabilities": []}, False)):
        monkeypatch.setattr(kitchen, "list_backends", lambda cuda=cuda: {"eager": there, "cuda": cuda})
        assert sizes.dequantises_in_one_step("nvfp4") == expected
        assert not sizes.dequantises_in_one_step("mxfp8")  # comfy-kitchen has none
