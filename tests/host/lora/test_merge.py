"""A model file with LoRAs merged in: it acts like the model with the LoRAs, and nothing else in it changes."""

import itertools
import json
from pathlib import Path

import comfy.sd
import comfy.utils
import glibc
import pytest
import torch
from children import run_probe
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import FORMATS, adapters_for, brief_flux2, problem, stored, with_few_words

from flux2_train.adapters import files, names, stream, write
from flux2_train.adapters.parts import Kronecker, LowRank
from flux2_train.errors import UserError
from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.borrowed.frozen import fetched
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.lora import apply as lora
from flux2_train.host.lora.base_file import BaseFile
from flux2_train.host.lora.merge import PRECISIONS, convert, merge


def predict(model):
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return velocity(model, *problem(1, dtype=torch.float32)[:3]).clone()


def model_of(path):
    with torch.inference_mode():
        weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
        return with_few_words(comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata))


def fetched_weight(layer):
    with fetched(layer, torch.float32, torch.device("cpu")) as (weight, _):
        return weight.clone()


def base_file(tmp_path, format="fp32", prefix="", metadata=None):
    model = brief_flux2()
    weights = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    path = tmp_path / f"base_{format}.safetensors"
    save_file({prefix + k: v for k, v in stored(weights, format).items()}, path, metadata or {"made by": "me"})
    return model, path


def lora_file(tmp_path, name="lora", **kind):
    model = brief_flux2()
    adapters = adapters_for(model, rank=3, **kind)
    exported = files.export(adapters.parts(), precision="fp32", weights=lora.weights(model))
    return exported, files.save_as(exported, tmp_path / f"{name}.safetensors", {"modelspec.title": "t"})


@pytest.mark.parametrize("kind", [{}, {"dora": True}, {"kind": "loha"}, {"kind": "lokr"}])
def test_acts_like_the_loras_at_their_strengths(tmp_path, kind):
    model, base = base_file(tmp_path)
    first, path = lora_file(tmp_path, **kind)
    second, other = lora_file(tmp_path, "other")
    report = merge(base, [(path, 0.7), (other, -0.4)], tmp_path / "out.safetensors")
    expected = predict(lora.apply(lora.apply(model, first.tensors, 0.7, "merged"), second.tensors, -0.4, "merged"))
    found, before = predict(model_of(report.path)), predict(model)
    assert (found - expected).norm() < 1e-4 * (expected - before).norm()
    assert (report.layers, report.formats) == (12, {"float32": 12}) and report.error < 1e-5
    with safe_open(report.path, "pt") as file:
        assert file.metadata()["made by"] == "me"
        merged = json.loads(file.metadata()["flux2_train.merged"])
    assert merged == [{"file": path.name, "strength": 0.7}, {"file": other.name, "strength": -0.4}]


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "nvfp4_awq"])
def test_every_source_format_keeps_its_precision_and_says_what_rounding_lost(tmp_path, format):
    torch.manual_seed(1)  # a sum in another order may round to the other side of a tie
    _, base = base_file(tmp_path, format)
    parts = {"single_blocks.1.linear2": LowRank(torch.randn(2, 512), 0.05 * torch.randn(128, 2))}
    path = files.save(write.tensors(parts, dtype=torch.float32), tmp_path / "one.safetensors", {})
    report = merge(base, [(path, 1.0)], tmp_path / "out.safetensors")
    before, after = load_file(base), load_file(report.path)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert (value.dtype, value.shape) == (after[key].dtype, after[key].shape)
        if "single_blocks.1.linear2" not in key:
            assert torch.equal(value.reshape(-1).view(torch.uint8), after[key].reshape(-1).view(torch.uint8))
    name = "single_blocks.1.linear2"
    with BaseFile(base) as old, BaseFile(report.path) as new, old.weight(name) as was, new.weight(name) as now:
        wanted = parts[name].delta()
        error = ((now - was - wanted).norm() / wanted.norm()).item()
    assert report.error == pytest.approx(error, rel=1e-3, abs=1e-6)
    assert (error < 1e-6) == (format == "fp32")
    for key, value in stored({f"{name}.weight": was + wanted}, format).items():  # rounded once, from the exact sum
        assert key.endswith("comfy_quant") or torch.equal(after[key].float(), value.float()), key
    assert torch.equal(fetched_weight(linears(model_of(report.path))[name]), now)


@pytest.mark.long(cases=7)
@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "source"])
@pytest.mark.parametrize("format", ["fp32", "scaled_fp8_e4m3", "nvfp4", "old_scaled_fp8", "fp8_e4m3"])
def test_another_precision(tmp_path, format, precision):
    _, base = base_file(tmp_path, format)
    _, path = lora_file(tmp_path)
    report = merge(base, [(path, 1.0)], tmp_path / "out.safetensors", precision)
    tensors = load_file(report.path)
    dtype = write.DTYPES.get(precision, torch.bfloat16)
    for key, tensor in tensors.items():
        if precision == "fp8" and "_blocks." in key and tensor.ndim == 2:
            assert tensor.dtype == torch.float8_e4m3fn
        elif not key.endswith((".weight_scale", ".comfy_quant")):
            assert tensor.dtype == dtype
    assert ("single_blocks.0.linear1.weight_scale" in tensors) == (precision == "fp8")
    assert set(report.formats) == {"float8_e4m3fn" if precision == "fp8" else str(dtype).removeprefix("torch.")}
    exact = load_file(merge(base, [(path, 1.0)], tmp_path / "exact.safetensors", "fp32").path)
    if precision == "fp8":
        exact = {k: v if "_blocks." in k and v.ndim == 2 else v.bfloat16() for k, v in exact.items()}
        exact = stored(exact, "scaled_fp8_e4m3")
    for key, tensor in tensors.items():  # rounded once
        assert key.endswith("comfy_quant") or torch.equal(tensor.float(), exact[key].to(tensor.dtype).float()), key
    as_read = {n: fetched_weight(layer) for n, layer in linears(model_of(report.path)).items()}
    for name, weight in as_read.items():
        scale = tensors.get(f"{name}.weight_scale", torch.ones(()))
        assert torch.equal(weight, tensors[f"{name}.weight"].float() * scale), name


def test_a_checkpoints_prefix_and_its_other_tensors_stay(tmp_path):
    _, base = base_file(tmp_path, prefix="model.diffusion_model.")
    tensors = load_file(base) | {"vae.x": torch.randn(3, 3)}
    save_file(tensors, base)
    _, path = lora_file(tmp_path)
    merge(base, [(path, 1.0)], tmp_path / "out.safetensors", "bf16")
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == tensors.keys() and torch.equal(found["vae.x"], tensors["vae.x"])
    assert found["model.diffusion_model.img_in.weight"].dtype == torch.bfloat16


def test_what_cannot_be_merged_is_refused_by_name(tmp_path):
    _, awq = base_file(tmp_path, "nvfp4_awq")
    _, path = lora_file(tmp_path)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match="of base_nvfp4_awq.safetensors scales its input"):
        merge(awq, [(path, 1.0)], out)
    with pytest.raises(UserError, match="Unknown precision 'int3'"):
        merge(awq, [], out, "int3")
    with pytest.raises(UserError, match="not a FLUX.2 transformer"):
        merge(path, [(path, 1.0)], out)
    _, base = base_file(tmp_path)
    odd = files.save({"lora_te_x.alpha": torch.tensor(1.0)}, tmp_path / "odd.safetensors", {})
    with pytest.raises(UserError, match="1 of 1 keys .* match nothing in base_fp32.safetensors"):
        merge(base, [(odd, 1.0)], out)
    assert not out.exists()
    merge(base, [(path, 1.0)], out)
    with pytest.raises(UserError, match="out.safetensors exists already"):
        merge(base, [(path, 1.0)], out)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.long
def test_merging_holds_a_few_layers_at_a_time(tmp_path, full_size):
    """Of a file of 220 MB (670 MB at full size) with layers of at most 9.4 MB in fp32.

    While merging, every block of a megabyte and more lies on its own, so that glibc counts them to the byte.
    """
    if not glibc.known():
        pytest.skip("only glibc, from 2.33 on, tells what is in use")
    most, size = map(int, run_probe("merge_probe.py", tmp_path, 96 if full_size else 30).split()[-2:])
    layer = 9 * 512 * 512 * 4
    # as loaded, in fp32, with the change, as stored and as read back, and two for what is computed meanwhile
    assert 3 * layer < most <= 7 * layer < 0.4 * size


def test_streamed_file_is_what_the_library_reads_back(tmp_path):
    tensors = {
        "scalar": torch.tensor(1.5), "odd": torch.arange(7, dtype=torch.uint8), "empty": torch.zeros(0),
        "half": torch.randn(3, 5).bfloat16(), "fp8": torch.randn(8, 8).to(torch.float8_e4m3fn),
        "wide": torch.randn(64, 3).T, "int": torch.arange(9), "bool": torch.tensor([True, False]),
        "e5": torch.ones(5, dtype=torch.float8_e5m2),
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    stream.write(path, iter(tensors.items()), [*tensors, "never comes"], {"ä": "ö"})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].float(), tensor.float())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"ä": "ö"}
    with pytest.raises(ValueError, match="more than was said"):
        stream.write(tmp_path / "b.safetensors", ((f"x{n}", torch.zeros(2)) for n in range(99)), ["x0"], {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_sizes_are_those_of_the_model():
    model = brief_flux2(guidance=True)
    assert lora.sizes(model) == names.sizes_of(128, 1, 2, 96)
    assert lora.sizes(brief_flux2()) == {k: v for k, v in names.sizes_of(128, 1, 2, 96).items() if "guidance" not in k}


def test_convert_between_formats_and_to_plain(tmp_path):
    _, base = base_file(tmp_path)
    exported, path = lora_file(tmp_path)
    line = convert(path, tmp_path / "k.safetensors", "kohya", "fp32", base=base)
    assert line == "k.safetensors: 12 layers as kohya, fp32"
    convert(tmp_path / "k.safetensors", tmp_path / "folder", "peft", "fp32", base=base)
    convert(
        tmp_path / "folder" / "adapter_model.safetensors", tmp_path / "back.safetensors", "comfyui", "fp32", base=base
    )
    back = load_file(tmp_path / "back.safetensors")
    with safe_open(tmp_path / "back.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "t"
    assert back.keys() == exported.tensors.keys()
    assert all(torch.allclose(back[k], v, atol=1e-6) for k, v in exported.tensors.items())
    _, dora = lora_file(tmp_path, "dora", dora=True)
    said = convert(dora, tmp_path / "plain.safetensors", "diffusers", plain_rank=128, base=base)
    assert "as plain LoRA with an error of 0.0" in said


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process has open is read from Linux's /proc")
def test_a_refused_conversion_leaves_the_base_closed(tmp_path):
    _, base = base_file(tmp_path)
    _, dora = lora_file(tmp_path, "dora", dora=True)
    with pytest.raises(UserError, match="cannot carry the DoRA") as kept:  # and with it every variable on the way
        convert(dora, tmp_path / "out.safetensors", "kohya", base=base)
    assert base.name not in Path("/proc/self/maps").read_text() and kept


def test_dora_changes_its_form_only_with_the_base(tmp_path):
    part = LowRank(torch.randn(2, 1024), torch.randn(256, 2), 1.0, torch.ones(256), of_base=True)  # of nano's sizes
    path = files.save(write.tensors({"single_blocks.0.linear2": part}), tmp_path / "dora.safetensors", {})
    with pytest.raises(UserError, match="give the base model's file"):
        convert(path, tmp_path / "folder", "peft")


def test_the_flavour_is_found_by_the_loras_own_sizes(tmp_path):
    parts = {"single_blocks.3.linear2": Kronecker((torch.randn(4, 4),), (torch.randn(1024, 4096),))}  # klein-9b
    path = files.save(write.tensors(parts), tmp_path / "k.safetensors", {})
    assert "1 layer as kohya" in convert(path, tmp_path / "out.safetensors", "kohya")
    none = files.save(write.tensors({"single_blocks.3.linear2": LowRank(torch.randn(1, 9), torch.randn(9, 1))}),
                      tmp_path / "n.safetensors", {})  # fmt: skip
    with pytest.raises(UserError, match="another FLUX.2 flavour"):
        convert(none, tmp_path / "no.safetensors", "kohya")


def test_a_model_that_appears_while_another_is_merged_is_not_replaced(tmp_path, monkeypatch):
    _, base = base_file(tmp_path)
    _, path = lora_file(tmp_path)
    output = tmp_path / "merged.safetensors"
    real = stream.write

    def slowly(place, tensors, *rest, **more):
        """A merge takes minutes; here somebody else's is ready after its first layer."""
        first = next(tensors)
        output.write_bytes(b"somebody else's")
        real(place, itertools.chain([first], tensors), *rest, **more)

    monkeypatch.setattr(stream, "write", slowly)
    with pytest.raises(UserError, match="merged.safetensors exists already; choose another name"):
        merge(base, [(path, 1.0)], output)
    assert output.read_bytes() == b"somebody else's"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([base.name, path.name, output.name])
