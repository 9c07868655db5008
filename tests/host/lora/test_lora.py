"""LoRA files: what we save acts the same in stock nodes, in LoRA Apply and in the trainer itself."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import comfy.model_management
import comfy_extras.nodes_train
import folder_paths
import pytest
import torch
from safetensors.torch import load_file
from support import adapters_for, brief_flux2, problem, state_dict

import nodes as core
from flux2_train.adapters import files, write
from flux2_train.adapters.parts import Hadamard, Kronecker, LowRank
from flux2_train.errors import UserError
from flux2_train.host.borrowed.borrow import borrow, linears, training_mode
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.describe import lora_warning
from flux2_train.host.lora import apply as lora


@pytest.fixture(scope="module")
def model():
    return brief_flux2()


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
    weights = state_dict(adapters, torch.float32)
    assert len(weights) == 2 * len(adapters.names)
    part = adapters.parts()["single_blocks.0.linear1"]
    assert part.scale == pytest.approx(4.0 / 3)
    name = "diffusion_model.single_blocks.0.linear1"
    assert torch.equal(weights[f"{name}.lora_A.weight"], part.down)
    assert torch.equal(weights[f"{name}.lora_B.weight"], part.up * part.scale)
    assert not [key for key in weights if "alpha" in key]


@pytest.mark.parametrize("how", ["stock merged", "stock bypass", "apply merged", "apply bypass", "stock file"])
def test_same_prediction_everywhere_and_no_key_unmatched(model, adapters, how, caplog, tmp_path, monkeypatch):
    weights = state_dict(adapters, torch.float32)
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
    weights = state_dict(adapters, torch.float32)
    assert lora.apply(model, weights, 0.0) is model
    base, one = predict(model), predict(lora.apply(model, weights, 1.0, lora.BYPASS))
    half = predict(
        lora.apply(model, {k: v * 0.5 if "lora_B" in k else v for k, v in weights.items()}, 1.0, lora.BYPASS)
    )
    assert error_of(predict(lora.apply(model, weights, 0.5, lora.BYPASS)), half, base) < 1e-5
    assert error_of(one, half, base) > 0.1


@pytest.mark.parametrize("modes", [("bypass", "bypass"), ("merged", "bypass"), ("bypass", "merged")])
def test_loras_stack_and_come_off_in_any_order(model, adapters, modes):
    base, weights = predict(model), state_dict(adapters, torch.float32)
    twice = {k: v * 2 if "lora_B" in k else v for k, v in weights.items()}
    expected = predict(lora.apply(model, twice, 1.0, lora.MERGED))
    stacked = lora.apply(lora.apply(model, weights, 1.0, modes[0]), weights, 1.0, modes[1])
    assert error_of(predict(stacked), expected, base) < 1e-4
    assert torch.equal(predict(model), base)
    assert not hooks(model)


def test_bypass_stacks_with_stock_bypass(model, adapters):
    base, weights = predict(model), state_dict(adapters, torch.float32)
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


def plain_flux2_with(change_of, strength=1.0):
    """The tiny model with other numbers in its weights: what a LoRA on it has to act like."""
    changed = brief_flux2()
    with torch.inference_mode():
        for name, layer in linears(changed).items():
            if name in change_of:
                layer.weight += strength * change_of[name](layer.weight)
    return changed


def parts_for(model, make):
    torch.manual_seed(0)
    return {
        name: make(layer.in_features, layer.out_features)
        for name, layer in linears(model).items()
        if "_blocks." in name
    }


def lora_part(into, out):
    return LowRank(0.1 * torch.randn(3, into), torch.randn(out, 3), 0.5)


def dora_part(into, out):
    return LowRank(0.1 * torch.randn(3, into), torch.randn(out, 3), 0.5, 1 + 0.2 * torch.randn(out), of_base=True)


def loha_part(into, out):
    return Hadamard(torch.randn(out, 2), 0.1 * torch.randn(2, into), torch.randn(out, 2), torch.randn(2, into), 0.3)


def lokr_part(into, out):
    return Kronecker((torch.randn(4, 8),), (torch.randn(out // 4, 2), 0.1 * torch.randn(2, into // 8)), 0.5)


KINDS = [lora_part, dora_part, loha_part, lokr_part]


def expected_change(part, weight):
    """By the formulas, from the parts' numbers alone."""
    delta = part.delta()
    if getattr(part, "magnitude", None) is None:
        return delta
    return part.magnitude[:, None] * (weight + delta) / weight.norm(dim=1, keepdim=True) - weight


@pytest.mark.drawn
@pytest.mark.long(cases=10)
@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("mode", [lora.MERGED, lora.BYPASS])
@pytest.mark.parametrize("make", KINDS)
def test_every_kind_acts_as_its_formula_says(model, make, mode, strength):
    parts = parts_for(model, make)
    base = predict(model)
    changes = {n: partial(expected_change, part) for n, part in parts.items()}
    expected = predict(plain_flux2_with(changes, strength))
    found = predict(lora.apply(model, write.tensors(parts, dtype=torch.float32), strength, mode))
    assert error_of(found, expected, base) < 1e-4
    assert torch.equal(predict(model), base)


@pytest.mark.parametrize("make", KINDS)
def test_stock_merged_loading_acts_like_ours(model, make):
    weights, base = write.tensors(parts_for(model, make), dtype=torch.float32), predict(model)
    stock = comfy_extras.nodes_train.LoraModelLoader.execute(model, weights, 0.7, False)[0]
    assert error_of(predict(lora.apply(model, weights, 0.7, lora.BYPASS)), predict(stock), base) < 1e-4


@pytest.mark.parametrize("mode", [lora.MERGED, lora.BYPASS])
def test_pefts_dora_is_read_by_the_papers_formula(model, mode):
    parts = {n: replace(part, of_base=False) for n, part in parts_for(model, dora_part).items()}

    def papers(part, weight):
        adapted = weight + part.delta()
        return part.magnitude[:, None] * adapted / adapted.norm(dim=1, keepdim=True) - weight

    base, expected = predict(model), predict(plain_flux2_with({n: partial(papers, p) for n, p in parts.items()}))
    found = predict(lora.apply(model, write.tensors(parts, "peft", torch.float32), 1.0, mode))
    assert error_of(found, expected, base) < 1e-4


@pytest.mark.parametrize("make", [lora_part, loha_part, lokr_part])
@pytest.mark.parametrize("mode", [lora.MERGED, lora.BYPASS])
def test_split_qkv_acts_in_both_modes(model, make, mode):
    torch.manual_seed(0)
    pieces = [make(128, 128) for _ in range(3)]
    weights = {}
    for name, piece in zip(("to_q", "to_k", "to_v"), pieces, strict=True):
        own = write.tensors({"x": piece}, dtype=torch.float32)
        weights |= {k.replace("diffusion_model.x", f"transformer.transformer_blocks.0.attn.{name}"): t
                    for k, t in own.items()}  # fmt: skip
    delta = torch.cat([piece.delta() for piece in pieces])
    expected = predict(plain_flux2_with({"double_blocks.0.img_attn.qkv": lambda weight: delta}))
    assert error_of(predict(lora.apply(model, weights, 1.0, mode)), expected, predict(model)) < 1e-4


@pytest.mark.parametrize("mode", [lora.MERGED, lora.BYPASS])
@pytest.mark.parametrize(
    "include, exclude, left",
    [
        ("double_blocks.*", "", lambda name: name.startswith("double")),
        ("", "*linear1, *txt*", lambda name: not name.endswith("linear1") and "txt" not in name),
        ("*linear?\n*qkv", "single_blocks.1.*", lambda n: ("linear" in n or "qkv" in n) and "blocks.1." not in n),
    ],
)
def test_patterns_restrict_what_acts(model, mode, include, exclude, left):
    parts = parts_for(model, lora_part)
    chosen = {name: part for name, part in parts.items() if left(name)}
    assert 0 < len(chosen) < len(parts)
    weights, base = write.tensors(parts, dtype=torch.float32), predict(model)
    found = predict(lora.apply(model, weights, 1.0, mode, include, exclude))
    expected = predict(lora.apply(model, write.tensors(chosen, dtype=torch.float32), 1.0, mode))
    assert torch.equal(found, expected) and not torch.equal(found, base)


def test_a_pattern_that_fits_nothing_is_an_error_that_names_it(model):
    weights = write.tensors(parts_for(model, lora_part))
    for patterns in (("img_*", ""), ("", "double_blocks.*, nothing")):
        with pytest.raises(UserError, match="pattern '(img_\\*|nothing)' fits no layer of this LoRA"):
            lora.apply(model, weights, 1.0, include=patterns[0], exclude=patterns[1])


def test_core_trainers_norms_act_and_other_keys_are_refused_unless_allowed(model):
    name = "double_blocks.0.img_attn.norm.key_norm"
    weights = write.tensors(parts_for(model, lora_part), dtype=torch.float32)
    with_norm = {**weights, f"diffusion_model.{name}.diff": torch.linspace(-1, 1, 128)}
    stock = comfy_extras.nodes_train.LoraModelLoader.execute(model, with_norm, 1.0, False)[0]
    expected = predict(stock)
    for mode in (lora.MERGED, lora.BYPASS):
        assert error_of(predict(lora.apply(model, with_norm, 1.0, mode)), expected, predict(model)) < 1e-4
    odd = {**weights, "lora_te1_x.alpha": torch.tensor(1.0), f"diffusion_model.{name}.diff": torch.ones(3)}
    with pytest.raises(UserError, match="2 of .* keys of this LoRA match nothing .*key_norm.diff"):
        lora.read(model, odd)
    loaded = lora.read(model, odd, allow_unmatched=True)
    assert (loaded.keys, loaded.total) == (len(weights), len(weights) + 2)
    with pytest.raises(UserError, match="1 of 1 keys"):
        lora.read(model, {"lora_te1_x.alpha": torch.tensor(1.0)}, allow_unmatched=True)


def hooks(model):
    return [m for m in model.model.diffusion_model.modules() if m._forward_hooks or "forward" in m.__dict__]


def test_comes_off_without_a_trace_also_under_another_packs_injection(model, adapters):
    base, weights = predict(model), state_dict(adapters, torch.float32)
    twice = {k: v * 2 if "lora_B" in k else v for k, v in weights.items()}
    expected = predict(lora.apply(model, twice, 1.0, lora.MERGED))
    ours = lora.apply(model, weights, 1.0, lora.BYPASS)
    both = comfy_extras.nodes_train.LoraModelLoader.execute(ours, weights, 1.0, True)[0]
    assert error_of(predict(both), expected, base) < 1e-4
    assert error_of(predict(ours), expected, base) > 0.1
    assert torch.equal(predict(model), base)
    assert not any(m._forward_hooks for m in model.model.diffusion_model.modules())


def test_an_injection_that_is_done_twice_acts_once(model, adapters):
    ours = lora.apply(model, state_dict(adapters, torch.float32), 1.0, lora.BYPASS)
    once, injections = predict(ours), [one for several in ours.injections.values() for one in several]
    for injection in injections:
        injection.inject(ours)
    with torch.inference_mode():
        assert torch.equal(velocity(ours, *problem(dtype=torch.float32)[:3]), once)
    for injection in injections:
        injection.eject(ours)
    assert not any(m._forward_hooks for m in model.model.diffusion_model.modules())


def test_auto_bypasses_on_a_quantised_model():
    assert lora.chosen_mode(brief_flux2(), lora.AUTO) == lora.MERGED
    assert lora.chosen_mode(brief_flux2(format="scaled_fp8_e4m3"), lora.AUTO) == lora.BYPASS


def test_on_a_quantised_model_bypass_is_exact_and_merging_is_not(caplog):
    """Why ``auto`` bypasses: merging into fp8 rounds to steps that are larger than a small LoRA."""
    model = brief_flux2(format="scaled_fp8_e4m3")
    adapters = adapters_for(model)
    with torch.no_grad():
        for name in adapters.names:
            adapters.layer(name).lora_B["default"].weight *= 0.02
    weights = state_dict(adapters, torch.float32)
    base, expected = predict(model), live(model, adapters)
    bypassed = lora.apply(model, weights, 1.0)
    assert error_of(predict(bypassed), expected, base) < 1e-3
    del bypassed
    assert error_of(predict(lora.apply(model, weights, 1.0, lora.MERGED)), expected, base) > 0.1


def test_files_are_whole_and_named_anew(adapters, tmp_path):
    weights = state_dict(adapters)
    first = files.save(weights, files.free_path(tmp_path, "a"), {"note": "x"})
    second = files.save(weights, files.free_path(tmp_path, "a"), {})
    assert (first.name, second.name) == ("a.safetensors", "a_2.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "a_2.safetensors"]
    assert all(v.dtype == torch.bfloat16 for v in load_file(first).values())


def test_a_model_that_carries_a_lora_is_told(nano):
    assert lora_warning(nano.model) == ""
    one = next(iter(linears(nano.model)))
    patched = nano.model.clone()
    patched.add_patches({f"diffusion_model.{one}.weight": ("diff", (torch.zeros(1),))}, 1.0)
    assert "already carries a LoRA on 1 weights" in lora_warning(patched)
