"""Models of Load FLUX.2 take no memory until they are used, and are otherwise what core's loader gives."""

from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import load_file, save_file
from support import problem, require_precision

from bench.encoding import encode_text
from flux2_train import nano
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS, LONGEST
from flux2_train.host import sizes
from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.encoding import encode
from flux2_train.host.loading import deferred, load
from flux2_train.host.loading.awaited import is_awaited
from flux2_train.host.system import memory

PRECISIONS = ["as in file", "bf16", "fp32", "fp8 (scaled)", "nvfp4"]
AS_STORED = ["as in file", "bf16"]  # as the file has them


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "base-model.safetensors"
    save_file(nano.transformer(), path)
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.safetensors"
    save_file(nano.text_encoder(), path)
    return path


@pytest.fixture(autouse=True)
def _as_a_node():
    with torch.inference_mode():
        yield


def predict(model):
    comfy.model_management.load_models_gpu([model])
    return velocity(model, *problem(1, context=nano.CONTEXT, dtype=torch.float32, text=LONGEST)[:3]).clone()


def has_weights(module):
    found = {is_awaited(weight) for weight in module.parameters()}
    assert len(found) == 1  # all of them or none
    assert not any(weight.is_meta for weight in module.parameters())
    return not found.pop()


def resident(path):
    """Bytes of a file that this process has mapped and touched."""
    if not Path("/proc/self/smaps").exists():
        pytest.skip("what is resident of a mapped file is read from Linux's /proc")
    found, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            own = line.endswith(f" {path}")
        elif own and key == "Rss:":
            found += 1024 * int(values[0])
    return found


def block_of(model):
    return linears(model)["single_blocks.0.linear1"]


def transformer(model):
    return model.model.diffusion_model


def looks(weight):
    assert isinstance(weight, torch.nn.Parameter)
    return weight.shape, weight.stride(), weight.dtype, weight.device, isinstance(weight, QuantizedTensor)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_come_with_the_first_use_and_look_the_same_before(source, precision):
    model = load.load_transformer(source, precision)
    assert has_weights(transformer(model)) == (precision in AS_STORED)
    looked = {name: looks(w) for name, w in transformer(model).named_parameters()}
    size, keys = comfy.model_management.module_size(model.model), list(transformer(model).state_dict())
    assert model.model_size() == size
    predict(model)
    assert has_weights(transformer(model))
    assert looked == {name: looks(w) for name, w in transformer(model).named_parameters()}
    assert size == comfy.model_management.module_size(model.model)
    assert keys == list(transformer(model).state_dict())


@pytest.mark.parametrize("precision", AS_STORED)
def test_weights_as_in_the_file_are_mapped_at_once_and_not_read_before_they_are_used(source, precision):
    model, size = load.load_transformer(source, precision), source.stat().st_size
    assert all(weight.data_ptr() for weight in transformer(model).parameters())
    assert resident(source) < 0.3 * size  # the library touches each of the small tensors once
    expected = predict(model)
    assert resident(source) > 0.9 * size
    comfy.model_management.unload_all_models()
    assert has_weights(transformer(model)) and resident(source) < 0.3 * size
    assert torch.equal(predict(model), expected)


def test_the_same_bits_as_from_cores_own_loader(source):
    core = comfy.sd.load_diffusion_model(str(source))
    ours = load.load_transformer(source)
    assert torch.equal(predict(ours), predict(core))  # core widens on a CPU, ours when a weight is used
    assert ours.model.get_dtype_inference() == core.model.get_dtype_inference()
    assert all(layer.weight.dtype == torch.bfloat16 for layer in linears(ours).values())


@pytest.mark.parametrize(
    "arguments, mapped", [((), True), (("fp8 (scaled)",), False), (("fp8 (scaled)", "cpu", True), True)]
)
def test_it_is_known_whose_memory_the_weights_are(source, comfy_folders, arguments, mapped):
    model = load.load_transformer(source, *arguments)
    assert deferred.mapped(model) == sizes.weights_of(model).mapped == mapped
    assert not deferred.mapped(comfy.sd.load_diffusion_model(str(source)))


@pytest.mark.parametrize("precision", ["as in file", "nvfp4"])
def test_clones_share_the_weights_and_they_go_with_unloading(source, precision):
    model = load.load_transformer(source, precision)
    clone = model.clone()
    assert type(clone) is type(model) and clone.model is model.model
    expected = predict(clone)
    assert has_weights(transformer(model))
    held = block_of(model).weight
    comfy.model_management.unload_all_models()
    stayed = has_weights(transformer(model)) and block_of(model).weight.data_ptr() == held.data_ptr()
    assert stayed == (precision == "nvfp4")  # what was quantised for it would be lost
    assert torch.equal(predict(model), expected)
    held = block_of(model).weight
    memory.unload(model)
    assert has_weights(transformer(model)) == (precision == "as in file")
    if precision == "as in file":
        assert block_of(model).weight.data_ptr() != held.data_ptr()  # mapped anew: what was read of it can go
    del held
    assert torch.equal(predict(clone.clone()), expected)


def test_weights_stay_while_another_clone_takes_over(source):
    model = load.load_transformer(source)
    predict(model)
    held = next(iter(linears(model).values())).weight
    predict(model.clone())
    assert next(iter(linears(model).values())).weight is held


@pytest.mark.parametrize("precision", ["as in file", "fp8 (scaled)"])
def test_merged_loras_change_neither_the_file_nor_the_weights(source, precision):
    before = source.read_bytes()
    model = load.load_transformer(source, precision)
    expected = predict(model)
    memory.unload(model)
    name, layer = next((n, m) for n, m in linears(model).items() if "_blocks." in n)
    change = torch.full((layer.out_features, layer.in_features), 0.01)
    merged = model.clone()
    assert merged.add_patches({f"diffusion_model.{name}.weight": ("diff", (change,))})
    assert not torch.equal(predict(merged), expected)
    assert torch.equal(predict(model), expected)
    comfy.model_management.unload_all_models()
    assert torch.equal(predict(model), expected) and source.read_bytes() == before


def test_other_nodes_get_the_weights_when_they_ask_the_patcher(source):
    """As ModelMergeSimple does, of a model that was never loaded."""
    model, other = load.load_transformer(source), load.load_transformer(source)
    original = model.model.model_config.process_unet_state_dict(load_file(source))  # by core's names
    patches = other.get_key_patches("diffusion_model.")
    for key, (found, *_) in patches.items():
        assert torch.equal(found[0], original[key.removeprefix("diffusion_model.")]), key
    half = model.clone()
    half.add_patches(patches, 0.5, 0.5)
    expected = predict(model)
    assert torch.allclose(predict(half), expected, rtol=1e-4, atol=1e-5)  # half of each of the same two


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_core_can_make_another_that_is_deferred_too(source, precision):
    model = load.load_transformer(source, precision)
    again, arguments = model.cached_patcher_init
    other = again(*arguments, disable_dynamic=True)
    assert other.model is not model.model and has_weights(transformer(other)) == (precision == "bf16")
    assert torch.equal(predict(other), predict(model))


@pytest.mark.long
@pytest.mark.parametrize("precision", ["as in file", "bf16", "fp32", "int8"])
def test_a_text_encoder_comes_and_goes_likewise(text, precision):
    require_precision(precision)
    row = FLAVOURS["nano"]
    clip = load.load_text_encoder(text, row, precision)
    inner = clip.cond_stage_model
    names, expected = getattr(inner, deferred.ATTRIBUTE).names, set()
    assert names
    if precision not in AS_STORED:
        expected = names
    assert awaited_in(inner) == expected
    encoder = encode.TextEncoder(clip)
    assert awaited_in(inner) == expected  # its key needed them for a moment only
    embeds = encode_text(clip, "a red cat")
    assert not awaited_in(inner)
    assert encode.TextEncoder(clip).identity == encoder.identity
    held = dict(inner.named_parameters())
    memory.unload(clip.patcher)
    assert awaited_in(inner) == expected
    assert not any(weight is held[name] for name, weight in inner.named_parameters() if name in names)
    assert torch.equal(encode_text(clip.clone(), "a red cat"), embeds)


def awaited_in(module):
    return {name for name, weight in module.named_parameters() if is_awaited(weight)}


def test_a_text_encoder_gives_the_bits_of_cores_loader(text):
    clip = load.load_text_encoder(text, FLAVOURS["nano"])
    target = type("Target", (), {"params": {}, "clip": type(clip.cond_stage_model), "tokenizer": type(clip.tokenizer)})
    weights = load_file(text)
    options = {"qwen3_4b_model_config": FLAVOURS["nano"].text_encoder_config}
    core = comfy.sd.CLIP(target, state_dict=[weights], model_options=options)
    caption = " ".join(["house"] * LONGEST)  # core fills up shorter ones
    assert torch.equal(encode_text(clip, caption), encode_text(core, caption))


def test_a_text_encoder_whose_numbers_the_device_lacks_is_loaded_at_once(text, monkeypatch):
    """fp8 on Apple's GPU: ComfyUI then computes on the CPU, and moves the weights there when it builds the model."""
    nano = FLAVOURS["nano"]
    clip = load.load_text_encoder(text, nano, "fp8 (e4m3)")
    expected = encode_text(clip, "a red square")
    lacking = {torch.float8_e4m3fn}
    monkeypatch.setattr(comfy.model_management, "supports_cast", lambda device, dtype: dtype not in lacking)
    assert torch.equal(encode_text(load.load_text_encoder(text, nano, "fp8 (e4m3)"), "a red square"), expected)


def test_what_does_not_compute_on_the_gpu_is_unloaded_too(text, monkeypatch):
    """With --lowvram ComfyUI's text encoders stay on the CPU; their weights may only go when it knows."""
    clip = load.load_text_encoder(text, FLAVOURS["nano"])
    expected = encode_text(clip, "a red square")
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("cuda"))
    memory.unload(clip.patcher)
    assert not any(entry.model is clip.patcher for entry in comfy.model_management.current_loaded_models)
    monkeypatch.undo()
    assert torch.equal(encode_text(clip, "a red square"), expected)


def test_an_incomplete_file_is_named_at_once(source):
    weights = load_file(source)
    del weights["single_blocks.0.linear1.weight"]
    save_file(weights, source)
    with pytest.raises(UserError, match="base-model.safetensors lacks 1 weight, single_blocks.0.linear1.weight"):
        load.load_transformer(source)


@pytest.mark.parametrize("precision", ["as in file", "fp8 (scaled)"])
def test_a_file_that_has_gone_meanwhile_says_so(source, precision):
    model = load.load_transformer(source, precision)
    elsewhere = source.rename(source.with_name("elsewhere.safetensors"))
    if precision in AS_STORED:
        predict(model)  # from the mapped file, which stays what it is until it is let go
        comfy.model_management.unload_all_models()
    with pytest.raises(FileNotFoundError, match="base-model.safetensors"):
        predict(model)
    elsewhere.rename(source)
    assert predict(model).isfinite().all()


def test_a_file_of_something_else_is_named_at_once(tmp_path):
    save_file({"something.weight": torch.zeros(4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors is not a diffusion model that ComfyUI knows"):
        load.load_transformer(tmp_path / "other.safetensors")


@pytest.mark.parametrize("kind", ["checkpoint", "old fp8"])
def test_other_forms_of_file_are_read(source, tmp_path, kind):
    plain, found = load_file(source), {}
    if kind == "checkpoint":
        found = {f"model.diffusion_model.{name}": weight for name, weight in plain.items()}
    else:
        for name, weight in plain.items():
            if weight.ndim == 2 and "_blocks." in name:
                scale = (weight.abs().max() / 448).float()
                found[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
                found[name.replace(".weight", ".scale_weight")] = scale
            else:
                found[name] = weight
        found["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    path = tmp_path / "other.safetensors"
    save_file(found, path)
    model = load.load_transformer(path)
    assert has_weights(transformer(model)) == (kind == "checkpoint")
    assert torch.equal(predict(model), predict(comfy.sd.load_diffusion_model(str(path))))
