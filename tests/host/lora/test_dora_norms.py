"""DoRA's norms are those of the MODEL's own weights, whichever clone of it was loaded last."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from support import adapters_for, tiny_caches, tiny_flux2

from flux2_train.adapters import dora, files, read
from flux2_train.adapters.parts import LowRank
from flux2_train.host.borrowed.borrow import linears, training_mode
from flux2_train.host.lora import apply as lora
from flux2_train.host.system.memory import unload
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.building import build_adapters

CONFIG = TrainingSettings(rank=2, steps=2, adapter=AdapterSettings(dora=True))


@pytest.fixture
def model():
    return tiny_flux2()


def of_blocks(model):
    return {name: layer for name, layer in linears(model).items() if "_blocks." in name}


def weights_of(model):
    return {name: layer.weight.detach().clone() for name, layer in of_blocks(model).items()}


def strong_lora(model, seed):
    """A LoRA that changes weights by about half of themselves."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in of_blocks(model).items():
        for key, shape in (("A", (2, layer.in_features)), ("B", (layer.out_features, 2))):
            tensors[f"diffusion_model.{name}.lora_{key}.weight"] = torch.randn(shape, generator=draw) * 0.2
    return tensors


def changes_of(model, tensors):
    loaded = lora.read(model, tensors)
    return {name: part.delta() for name, part in loaded.parts.items()}


def loaded(model):
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    return model


def magnitudes(model, config=CONFIG):
    with training_mode():
        adapters = build_adapters(model, config)
    return {name: adapters.magnitude(name).detach() for name in adapters.names}


def assert_norms(found, weights):
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.double().square().sum(1).sqrt().float(), rtol=1e-5, atol=0)


def test_another_clones_lora_does_not_count(model):
    base, other = weights_of(model), lora.apply(model, strong_lora(model, 1), 1.0, lora.MERGED)
    loaded(other)
    assert not torch.allclose(weights_of(model)["single_blocks.0.linear2"], base["single_blocks.0.linear2"], rtol=0.1)
    assert_norms(magnitudes(model), base)


@pytest.mark.parametrize("before", ["nothing", "itself", "the model without", "another clone"])
def test_the_models_own_lora_counts(model, before):
    base, own = weights_of(model), strong_lora(model, 2)
    expected = {name: base[name] + change for name, change in changes_of(model, own).items()}
    mine = lora.apply(model, own, 1.0, lora.MERGED)
    if before == "itself":
        loaded(mine)
    elif before == "the model without":
        loaded(model)
    elif before == "another clone":
        loaded(lora.apply(model, strong_lora(model, 1), 1.0, lora.MERGED))
    assert_norms(magnitudes(mine), expected)


def test_a_model_without_loras_is_not_loaded_for_it(model):
    unload(model)
    assert_norms(magnitudes(model), weights_of(model))
    assert all(entry.model.model is not model.model for entry in comfy.model_management.current_loaded_models)


@pytest.mark.parametrize("of_base", [True, False])
def test_the_forms_of_a_file_are_converted_by_the_models_own_weights(model, of_base):
    base = weights_of(model)
    parts = {
        name: LowRank(torch.randn(2, w.shape[1]) * 0.1, torch.randn(len(w), 2), 1.0, w.norm(dim=1) * 1.1, of_base)
        for name, w in base.items()
    }
    expected = {name: dora.change(part, base[name]) for name, part in parts.items()}
    loaded(lora.apply(model, strong_lora(model, 1), 1.0, lora.MERGED))
    other = dora.with_norm(parts, lora.weights(model), not of_base)
    for name, part in other.items():
        assert part.of_base != of_base
        torch.testing.assert_close(dora.change(part, base[name]), expected[name], rtol=1e-4, atol=1e-5)


def test_a_saved_dora_is_the_same_with_another_clone_loaded(model, tmp_path):
    adapters, base = adapters_for(model, dora=True), weights_of(model)
    expected = {name: dora.change(part, base[name]) for name, part in adapters.parts().items()}
    loaded(lora.apply(model, strong_lora(model, 1), 1.0, lora.MERGED))
    exported = files.export(adapters.parts(), precision="fp32", weights=lora.weights(model))
    path = files.save_as(exported, tmp_path / "a.safetensors", {})
    found = lora.read(model, read.load(path)).parts
    for name, change in expected.items():
        torch.testing.assert_close(dora.change(found[name], base[name]), change, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_run_learns_the_same_with_another_clone_loaded(model):
    embeds, latents = tiny_caches(items=2)

    def trained(before):
        before()
        trainer = new_trainer(model, embeds, latents, CONFIG)
        with torch.inference_mode():
            list(trainer.run())
        return trainer.adapters.masters()

    alone = trained(lambda: unload(model))
    beside = trained(lambda: loaded(lora.apply(model, strong_lora(model, 1), 1.0, lora.MERGED)))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_going_on_from_a_dora_takes_the_models_own_weights(model, tmp_path):
    base = weights_of(model)
    adapters = adapters_for(model, rank=2, dora=True)
    exported = files.export(adapters.parts(), precision="fp32", weights=lora.weights(model))
    path = files.save_as(exported, tmp_path / "a.safetensors", {})
    config = replace(CONFIG, adapter=replace(CONFIG.adapter, start_from=str(path)))
    loaded(lora.apply(model, strong_lora(model, 1), 1.0, lora.MERGED))
    with training_mode():
        found = build_adapters(model, config).parts()
    for name, part in adapters.parts().items():
        expected = dora.change(part, base[name])
        torch.testing.assert_close(dora.change(found[name], base[name]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [lora.MERGED, lora.BYPASS])
def test_lora_apply_takes_the_norms_of_the_clone_it_makes(model, mode):
    """Whatever is loaded while it is put on, and with the LoRAs that the MODEL has itself."""
    base, own = weights_of(model), strong_lora(model, 2)
    expected = {name: base[name] + change for name, change in changes_of(model, own).items()}
    parts = {
        name: LowRank(torch.randn(2, w.shape[1]) * 0.1, torch.randn(len(w), 2), 1.0, w.norm(dim=1) * 1.1)
        for name, w in base.items()
    }
    expected = {name: w + dora.change(parts[name], w) for name, w in expected.items()}
    mine = lora.apply(model, own, 1.0, lora.MERGED)
    loaded(lora.apply(model, strong_lora(model, 1), 1.0, lora.MERGED))
    both = loaded(lora.put(mine, lora.Loaded(parts, {}, 0, 0), 1.0, mode))
    for name, layer in of_blocks(both).items():
        x = torch.randn(3, layer.in_features)
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), x @ expected[name].T, rtol=1e-3, atol=1e-3)
