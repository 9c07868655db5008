"""LoRA files: what we save acts the same in stock nodes, in LoRA Apply and in the trainer itself."""

import logging
from pathlib import Path

import comfy.model_management
import comfy_extras.nodes_train
import folder_paths
import pytest
import torch
from safetensors.torch import load_file
from support import adapters_for, problem, tiny_flux2

import nodes as core
from flux2_train.adapters import files
from flux2_train.errors import UserError
from flux2_train.host import lora
from flux2_train.host.borrow import borrow, training_mode
from flux2_train.host.velocity import velocity


@pytest.fixture(scope="module")
def model():
    return tiny_flux2()


@pytest.fixture(scope="module")
def adapters(model):
    return adapters_for(model, rank=3)


def live(model, adapters):
    with borrow(model, adapters.deltas()) as borrowed, training_mode(), torch.no_grad():
        return velocity(borrowed, *problem(dtype=torch.float32)[:3])


def predict(model):
    """A MODEL's velocity, loaded as the sampler loads it: patches merged, injections in."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return velocity(model, *problem(dtype=torch.float32)[:3]).clone()


def error_of(found, expected, base):
    """Difference as a share of the LoRA's effect."""
    return ((found - expected).norm() / (expected - base).norm()).item()


def test_alpha_is_folded_and_no_alpha_key_is_left(adapters):
    weights = files.state_dict(adapters, torch.float32)
    assert len(weights) == 2 * len(adapters.names)
    down, up, scale = adapters.matrices()["single_blocks.0.linear1"]
    assert scale == pytest.approx(4.0 / 3)
    name = "diffusion_model.single_blocks.0.linear1"
    assert torch.equal(weights[f"{name}.lora_A.weight"], down)
    assert torch.equal(weights[f"{name}.lora_B.weight"], up * scale)
    assert not [key for key in weights if "alpha" in key]


@pytest.mark.parametrize("how", ["stock merged", "stock bypass", "apply merged", "apply bypass", "stock file"])
def test_same_prediction_everywhere_and_no_key_unmatched(model, adapters, how, caplog, tmp_path, monkeypatch):
    weights = files.state_dict(adapters, torch.float32)
    base, expected = predict(model), live(model, adapters)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        if how == "stock file":
            loras = folder_paths.get_folder_paths("loras")[0]
            files.save(weights, files.free_path(Path(loras), "saved"), {})
            name = folder_paths.get_filename_list("loras")[-1]
            loaded = core.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]
        elif how.startswith("stock"):
            loaded = comfy_extras.nodes_train.LoraModelLoader.execute(model, weights, 1.0, how == "stock bypass")[0]
        else:
            loaded = lora.apply(model, weights, 1.0, how.split()[1])
        found = predict(loaded)
    assert not [r.getMessage() for r in caplog.records if "not loaded" in r.getMessage().lower()]
    assert error_of(found, expected, base) < 1e-4
    del loaded
    assert torch.equal(predict(model), base)


def test_strength_scales_and_zero_is_the_base(model, adapters):
    weights = files.state_dict(adapters, torch.float32)
    assert lora.apply(model, weights, 0.0) is model
    base, one = predict(model), predict(lora.apply(model, weights, 1.0, lora.BYPASS))
    half = predict(
        lora.apply(model, {k: v * 0.5 if "lora_B" in k else v for k, v in weights.items()}, 1.0, lora.BYPASS)
    )
    assert error_of(predict(lora.apply(model, weights, 0.5, lora.BYPASS)), half, base) < 1e-5
    assert error_of(one, half, base) > 0.1


@pytest.mark.parametrize("modes", [("bypass", "bypass"), ("merged", "bypass"), ("bypass", "merged")])
def test_loras_stack_and_come_off_in_any_order(model, adapters, modes):
    base, weights = predict(model), files.state_dict(adapters, torch.float32)
    twice = {k: v * 2 if "lora_B" in k else v for k, v in weights.items()}
    expected = predict(lora.apply(model, twice, 1.0, lora.MERGED))
    stacked = lora.apply(lora.apply(model, weights, 1.0, modes[0]), weights, 1.0, modes[1])
    assert error_of(predict(stacked), expected, base) < 1e-4
    assert torch.equal(predict(model), base)
    assert not [m for m in model.model.diffusion_model.modules() if "forward" in m.__dict__]


def test_bypass_stacks_with_stock_bypass(model, adapters):
    base, weights = predict(model), files.state_dict(adapters, torch.float32)
    twice = {k: v * 2 if "lora_B" in k else v for k, v in weights.items()}
    expected = predict(lora.apply(model, twice, 1.0, lora.MERGED))
    stock = comfy_extras.nodes_train.LoraModelLoader.execute(model, weights, 1.0, True)[0]
    assert error_of(predict(lora.apply(stock, weights, 1.0, lora.BYPASS)), expected, base) < 1e-4


def test_a_lora_of_another_model_is_refused_by_key(model):
    with pytest.raises(UserError, match=r"2 of 2 keys .* match nothing .*diffusion_model.layers.0"):
        lora.apply(model, {f"diffusion_model.layers.0.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}, 1.0)


def test_a_lora_of_another_flavour_is_refused_by_size(model):
    name = "diffusion_model.single_blocks.0.linear2"
    weights = {f"{name}.lora_A.weight": torch.zeros(2, 1024), f"{name}.lora_B.weight": torch.zeros(256, 2)}
    with pytest.raises(
        UserError, match="another FLUX.2 flavour: .* is 128x512 in FLUX.2 128/1/2/96, the LoRA's is 256x1024"
    ):
        lora.apply(model, weights, 1.0)


def test_slices_are_refused_in_bypass_and_merge(model):
    weights = {
        f"transformer.transformer_blocks.0.attn.to_q.lora_{x}.weight": torch.zeros(*shape)
        for x, shape in (("A", (2, 128)), ("B", (128, 2)))
    }
    lora.apply(model, weights, 1.0, lora.MERGED)
    with pytest.raises(UserError, match="set mode to 'merged'"):
        lora.apply(model, weights, 1.0, lora.BYPASS)


def test_auto_bypasses_on_a_quantised_model():
    assert lora.chosen_mode(tiny_flux2(), lora.AUTO) == lora.MERGED
    assert lora.chosen_mode(tiny_flux2(fp8=True), lora.AUTO) == lora.BYPASS


def test_on_a_quantised_model_bypass_is_exact_and_merging_is_not(caplog):
    """Why ``auto`` bypasses: merging into fp8 rounds to steps that are larger than a small LoRA."""
    model = tiny_flux2(fp8=True)
    adapters = adapters_for(model)
    with torch.no_grad():
        for name in adapters.names:
            adapters.layer(name).lora_B["default"].weight *= 0.02
    weights = files.state_dict(adapters, torch.float32)
    base, expected = predict(model), live(model, adapters)
    bypassed = lora.apply(model, weights, 1.0)
    assert error_of(predict(bypassed), expected, base) < 1e-3
    del bypassed
    assert error_of(predict(lora.apply(model, weights, 1.0, lora.MERGED)), expected, base) > 0.1


def test_files_are_whole_named_anew_and_never_pickles(adapters, tmp_path):
    weights = files.state_dict(adapters)
    first = files.save(weights, files.free_path(tmp_path, "a"), {"note": "x"})
    second = files.save(weights, files.free_path(tmp_path, "a"), {})
    assert (first.name, second.name) == ("a.safetensors", "a_2.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "a_2.safetensors"]
    assert all(v.dtype == torch.bfloat16 for v in load_file(first).values())
    (tmp_path / "b.pt").write_bytes(b"pickle")
    with pytest.raises(UserError, match="b.pt is not a safetensors file"):
        files.load(tmp_path / "b.pt")
