"""Kinds of adapters beside LoRA, as the programs that train them write them: what each does is what its formula says.

The programs' own code writes such files in ``bench.lora_matrix``.
"""

import comfy.model_management
import pytest
import torch
from lora_files import FILES, LINEAR2, QKV, H, lora_of, made, rows_of
from safetensors.torch import load_file, save_file
from support import brief_flux2, problem, weights_of

from bench.shapes import flux2_shapes
from flux2_train.adapters import dora
from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.lora import apply as lora
from flux2_train.host.lora.merge import merge


@pytest.fixture(scope="module")
def model():
    return brief_flux2()


@pytest.fixture(scope="module")
def weights(model):
    return weights_of(model)


def assert_effect(found, expected, base, most=2e-5):
    assert (found.double() - expected).norm() <= most * (expected - base.double()).norm()


@pytest.mark.parametrize("what", FILES)
def test_what_a_file_makes_of_the_weights_is_what_its_formula_says(model, weights, what):
    tensors, changed = made(what, weights)
    loaded = lora.read(model, tensors)
    assert loaded.keys == len(tensors) and loaded.parts.keys() == changed.keys() and not loaded.note
    for name, expected in changed.items():
        assert_effect(weights[name] + dora.change(loaded.parts[name], weights[name]), expected, weights[name])


def predict(model):
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return velocity(model, *problem(1, dtype=torch.float32)[:3]).clone()


def with_weights(changed, weights, strength):
    """The tiny model with those weights, ``strength`` of the way from its own."""
    other = brief_flux2()
    layers = linears(other)
    with torch.inference_mode():
        for name, new in changed.items():
            layers[name].weight.copy_(weights[name] + strength * (new - weights[name]))
    return other


@pytest.mark.long(cases=4)
@pytest.mark.drawn(cases=16)
@pytest.mark.parametrize(("what", "strength"), [(what, (1.0, -0.6)[n % 2]) for n, what in enumerate(FILES)])
def test_lora_apply_acts_so_merged_and_in_bypass(model, weights, what, strength):
    tensors, changed = made(what, weights)
    base, expected = predict(model), predict(with_weights(changed, weights, strength))
    for mode in (lora.MERGED, lora.BYPASS):
        found = predict(lora.apply(model, tensors, strength, mode))
        assert (found - expected).norm() < 1e-3 * (expected - base).norm(), mode
    assert torch.equal(predict(model), base)


@pytest.mark.parametrize("what", ["LyCORIS DoRA on LoKr", "OneTrainer DoRA over inputs, ComfyUI", "LyCORIS OFT",
                                  "OneTrainer OFT, ComfyUI"])  # fmt: skip
def test_bypass_in_bf16_is_as_exact_as_bf16(model, weights, what):
    """What is added is small beside the layer's own output, and must not be lost in its rounding."""
    tensors, _ = made(what, weights)
    part, w = lora.read(model, tensors).parts[LINEAR2], weights[LINEAR2]
    layer = linears(brief_flux2())[LINEAR2].to(torch.bfloat16)
    x = torch.randn(64, w.shape[1]).to(torch.bfloat16)
    own = layer.weight.double()
    expected = x.double() @ dora.change(part, layer.weight.float()).double().T
    with torch.inference_mode():
        y = (x.double() @ own.T).to(torch.bfloat16)
        added = lora.Contribution(part, 1.0)(layer, (x,), y.float()) - y.float()
    assert (added.double() - expected).norm() < 0.02 * expected.norm()


def model_file(tmp_path, norm=".weight"):
    """The tiny model's weights as a file, its norms under either name."""
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=draw) * shape[-1] ** -0.5 if len(shape) > 1 else torch.ones(shape)
        for name, shape in flux2_shapes(H, 1, 2, 96)
    }
    renamed = {name.replace("_norm.weight", f"_norm{norm}"): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    return renamed, tmp_path / "model.safetensors"


@pytest.mark.parametrize("what", FILES)
def test_save_merged_model_writes_those_weights(tmp_path, what):
    weights, path = model_file(tmp_path)
    layers = {name.removesuffix(".weight"): tensor for name, tensor in weights.items()}
    tensors, changed = made(what, layers)
    save_file(tensors, tmp_path / "lora.safetensors")
    merge(path, [(tmp_path / "lora.safetensors", 0.5)], tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    for name, before in layers.items():
        if name in changed:
            expected = before + 0.5 * (changed[name] - before)
            assert_effect(merged[f"{name}.weight"], expected, before)
        elif name in linears_of(weights):
            assert torch.equal(merged[f"{name}.weight"], before)


def linears_of(weights):
    return {name.removesuffix(".weight") for name, tensor in weights.items() if tensor.ndim == 2}


NORMS = {
    "diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff": "double_blocks.0.img_attn.norm.key_norm",
    "lora_unet_double_blocks_0_txt_attn_norm_query_norm.diff": "double_blocks.0.txt_attn.norm.query_norm",
    "lycoris_single_transformer_blocks_1_attn_norm_k.w_norm": "single_blocks.1.norm.key_norm",
    "transformer.transformer_blocks.0.attn.norm_added_k.diff": "double_blocks.0.txt_attn.norm.key_norm",
}


@pytest.mark.parametrize("key", NORMS)
def test_changes_of_norms_are_found_by_every_name(model, key):
    change = torch.linspace(-0.5, 0.5, H)
    other = lora.read(model, {**made("LyCORIS difference", weights_like(model))[0], key: change}).others
    assert other.keys() == {f"{NORMS[key]}.weight"} and torch.equal(other[f"{NORMS[key]}.weight"], change)


def weights_like(model):
    return {name: torch.zeros(layer.out_features, layer.in_features) for name, layer in linears(model).items()}


@pytest.mark.parametrize("norm", [".weight", ".scale"])
@pytest.mark.parametrize("key", NORMS)
def test_save_merged_model_changes_norms_under_either_name(tmp_path, key, norm):
    weights, path = model_file(tmp_path, norm)
    change = torch.linspace(-0.5, 0.5, H)
    layers = {name.removesuffix(".weight"): tensor for name, tensor in weights.items()}
    save_file({**made("kohya difference", layers)[0], key: change}, tmp_path / "lora.safetensors")
    merge(path, [(tmp_path / "lora.safetensors", 0.5)], tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    for name, before in weights.items():
        if name.endswith(f"_norm{norm}"):
            mine = name == f"{NORMS[key]}{norm}"
            torch.testing.assert_close(merged[name], before + 0.5 * change if mine else before)


def test_some_rows_with_dora_and_some_without_act_each_as_they_are(model, weights):
    torch.manual_seed(0)
    q, k, _ = (w.double() for w in weights[QKV].chunk(3))
    with_scale, q_new = rows_of(lora_of)(q, "")
    plain, change = lora_of(k.float())
    tensors = {f"lycoris_transformer_blocks_0_attn_add_q_proj.{key}": t for key, t in with_scale.items()}
    tensors |= {f"lycoris_transformer_blocks_0_attn_add_k_proj.{key}": t for key, t in plain.items()}
    expected = weights[QKV].double().clone()
    expected[:H], expected[H : 2 * H] = q_new, k + change
    part = lora.read(model, tensors).parts[QKV]
    assert_effect(weights[QKV] + dora.change(part, weights[QKV]), expected, weights[QKV])
