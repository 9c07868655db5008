"""A file in a quantised format that the running ComfyUI does not have: it is planned, and refused in one sentence."""

import json
import re

import comfy.ops
import comfy.quant_ops
import pytest
import torch
from published import FLAVOURS as SIZES
from published import LAYOUTS, awq, headers_of, nbytes, write_hollow
from published_encoders import QWEN_4B, every_matrix
from published_encoders import headers_of as text_headers

from flux2_train import safetensors_header
from flux2_train.adapters import files, write
from flux2_train.adapters.parts import LowRank
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.formats import AS_IN_FILE
from flux2_train.host.borrowed.frozen import frozen_linear
from flux2_train.host.loading import kinds, load, stored_formats
from flux2_train.host.lora.base_file import BaseFile
from flux2_train.host.lora.merge import merge
from flux2_train.planning import weights
from flux2_train.terminal.main import main

NAMED = {name: row for name, row in LAYOUTS.items() if row.marker in ("header", "comfy_quant") and row.format}
NEW = {"w4a8": "asym_w4a8_int8", "w4a8 by header": "asym_w4a8_int8", "awq w4a16": "awq_w4a16"}


def hollow(folder, layout):
    return write_hollow(folder / "model.safetensors", *headers_of(LAYOUTS[layout], SIZES["klein-4b"]))


@pytest.mark.parametrize("layout", NAMED)
def test_a_file_names_its_formats(layout, tmp_path):
    header = safetensors_header.read(hollow(tmp_path, layout))
    assert stored_formats.formats_of(header) == {LAYOUTS[layout].format}


@pytest.mark.parametrize("layout", [*NEW, "int8 convrot", "int4 convrot", "nvfp4"])
def test_a_format_that_this_comfyui_lacks_is_refused_by_name(layout, tmp_path, monkeypatch):
    format, path = LAYOUTS[layout].format, hollow(tmp_path, layout)
    monkeypatch.delitem(comfy.quant_ops.QUANT_ALGOS, format, raising=False)
    wanted = rf"model.safetensors stores its weights as {format}. This ComfyUI .* cannot read that: update ComfyUI, or"
    with pytest.raises(UserError, match=wanted), torch.inference_mode():
        load.load_transformer(path, AS_IN_FILE)
    with pytest.raises(UserError, match=wanted):
        BaseFile(path)
    assert re.match(wanted, kinds.wrong_transformer(path, FLAVOURS["klein-4b"]))


def test_a_text_encoder_in_such_a_format_is_refused_as_well(tmp_path):
    entries, metadata, texts = text_headers(QWEN_4B, every_matrix)
    described = json.loads(metadata["_quantization_metadata"])
    described["layers"] = {name: {"format": "float3"} for name in described["layers"]}
    path = write_hollow(
        tmp_path / "text.safetensors", entries, {"_quantization_metadata": json.dumps(described)}, texts
    )
    wanted = "text.safetensors stores its weights as float3. This ComfyUI"
    with pytest.raises(UserError, match=wanted):
        load.load_text_encoder(path, FLAVOURS["klein-4b"])
    assert kinds.wrong_text_encoder(path, FLAVOURS["klein-4b"]).startswith(wanted)


def test_a_lora_is_not_merged_into_awq_in_its_own_format(tmp_path, monkeypatch):
    known = {"storage_t": torch.int8, "parameters": set(), "comfy_tensor_layout": "TensorCoreAWQW4A16Layout"}
    monkeypatch.setitem(comfy.quant_ops.QUANT_ALGOS, "awq_w4a16", known)  # as newer ones have it
    parts = {"single_blocks.0.linear2": LowRank(torch.randn(2, 4 * 3072), torch.randn(3072, 2))}
    path = files.save(write.tensors(parts), tmp_path / "lora.safetensors", {})
    with pytest.raises(UserError, match="single_blocks.0.linear2 of model.safetensors is stored as awq_w4a16"):
        merge(hollow(tmp_path, "awq w4a16"), [(path, 1.0)], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("layout", NEW)
def test_such_a_file_is_planned_with_its_own_bytes(layout, tmp_path, capsys):
    path = hollow(tmp_path, layout)
    found, row = weights.of_files([path]), FLAVOURS["klein-4b"]
    assert (found.hidden, found.double, found.single, found.context) == row.sizes
    assert found.linears == weights.of_flavour(row, "bf16").linears
    entries, _, texts = headers_of(LAYOUTS[layout], SIZES["klein-4b"])
    in_layers = {name: entry for name, entry in entries.items() if "_norm." not in name and name not in texts}
    assert found.total == sum(map(nbytes, in_layers.values()))
    numbers = sum(into * out for name, (into, out) in found.linears.items() if "_blocks." in name)
    assert sum(found.block_bytes()) / numbers == pytest.approx(0.5 + 1 / 16, rel=0.01)
    assert found.format == "int4"  # what is planned for dequantising: the format that needs most
    assert main(["plan", "--transformer", str(path), "--vram", "24"]) == 0
    assert f"klein-4b, {found.total / 1e9:.2f} GB of weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"layers": 3}', '{"layers": {"a": "b"}}', '{"layers": {"a": {"format": 4}}}']
)
def test_what_is_no_description_names_no_format(text, tmp_path):
    entries = {"a.weight": ("F32", (2, 2)), "a.comfy_quant": ("U8", (len(text),))}
    metadata = {"_quantization_metadata": text}
    path = write_hollow(tmp_path / "odd.safetensors", entries, metadata, {"a.comfy_quant": text.encode()})
    assert stored_formats.formats_of(safetensors_header.read(path)) == set()


def test_awq_trains_through_the_values_that_its_numbers_mean():
    """A Linear as newer versions of ComfyUI make it of such a file: comfy-kitchen had the layout before they did."""
    kitchen = pytest.importorskip("comfy_kitchen.tensor")
    if not hasattr(kitchen, "TensorCoreAWQW4A16Layout"):
        pytest.skip("this comfy-kitchen has no awq_w4a16")
    torch.manual_seed(0)
    stored, meant = awq(torch.randn(96, 256))
    params = kitchen.TensorCoreAWQW4A16Layout.Params(
        scale=stored["weight_scale"], zeros=stored["weight_zeros"], orig_dtype=torch.bfloat16, orig_shape=(96, 256)
    )
    layer = comfy.ops.mixed_precision_ops({}, torch.bfloat16).Linear(256, 96, bias=False, device="cpu")
    weight = kitchen.QuantizedTensor(stored["weight"], "TensorCoreAWQW4A16Layout", params)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    x, pulled = torch.randn(5, 256, requires_grad=True), torch.randn(5, 96)
    y = frozen_linear(layer, x)
    (found,) = torch.autograd.grad(y, x, pulled)
    assert (y - x @ meant.T).norm() <= 1e-5 * y.norm()
    assert (found - pulled @ meant).norm() <= 1e-5 * found.norm()
