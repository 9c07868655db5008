"""Transformers under diffusers' names, which stock ComfyUI cannot load: converted exactly, from one file or several."""

import json

import comfy.model_management
import comfy.sd
import pytest
import torch
from published import DEV, KLEIN, LAYOUTS, drawn, in_diffusers, write, write_diffusers
from safetensors.torch import load_file, save_file
from support import by_diffusers, problem
from test_published import error, gradients, ours, plain, predict, trained

from flux2_train.adapters import diffusers
from flux2_train.errors import UserError
from flux2_train.flavours import flavour
from flux2_train.host import identify
from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.loading import reading
from flux2_train.host.loading.awaited import is_awaited
from flux2_train.host.lora import apply as lora
from flux2_train.host.lora import merge
from flux2_train.planning import weights as planned
from flux2_train.planning.work import Machine
from flux2_train.runs import precision as fit
from flux2_train.settings.model import ModelSettings


@pytest.fixture(scope="module", params=[KLEIN, DEV], ids=["klein", "dev"])
def made(request, tmp_path_factory):
    """diffusers' own transformer with random weights, and the folders it saved itself to, whole and in parts."""
    pytest.importorskip("diffusers", minversion="0.36", reason="diffusers, a development requirement, is missing")
    from diffusers import Flux2Transformer2DModel

    size, folder = request.param, tmp_path_factory.mktemp("diffusers")
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(
        in_channels=128, num_layers=size.double, num_single_layers=size.single, num_attention_heads=size.hidden // 128,
        joint_attention_dim=size.context, guidance_embeds=size.guidance,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter if parameter.ndim > 1 else torch.rand_like(parameter) + 0.5).bfloat16().float())
    model.requires_grad_(False).bfloat16()
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "split", max_shard_size="4MB")
    return size, model.float(), folder


def predict_on(model, x, t, conditions):
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return velocity(model, x, t, conditions).clone()


def first(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def test_the_names_are_those_that_diffusers_saves(made):
    size, _, folder = made
    saved = load_file(first(folder / "whole"))
    assert {name: ("BF16", tuple(value.shape)) for name, value in saved.items()} == in_diffusers(size)
    index = json.loads((folder / "split" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list((folder / "split").glob("*.safetensors"))) > 2
    assert index["weight_map"].keys() == saved.keys()


@pytest.mark.parametrize("form", ["whole", "split"])
def test_velocity_is_that_of_diffusers(made, form):
    _, transformer, folder = made
    model = ours(first(folder / form))
    assert all(map(is_awaited, model.model.diffusion_model.parameters()))  # q, k and v are joined on first use
    x, t, conditions, _ = problem(2, references=1, dtype=torch.float32)
    expected = by_diffusers(transformer, x, t, conditions)
    assert error(predict_on(model, x, t, conditions), expected) <= 1e-5


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("size", [KLEIN, DEV], ids=["klein", "dev"])
def test_it_is_the_file_of_the_published_names_bit_by_bit(size, parts, tmp_path):
    weights = drawn(size)
    values = write(tmp_path / "bfl.safetensors", LAYOUTS["bf16"], size, weights)
    paths = {write_diffusers(tmp_path, weights, parts)} | set(tmp_path.glob(f"diff*of-{parts:05d}.safetensors"))
    expected = ours(tmp_path / "bfl.safetensors")
    for path in paths:
        model = ours(path)
        assert torch.equal(predict(model), predict(expected))
        assert all(torch.equal(layer.weight.float(), values[f"{n}.weight"]) for n, layer in linears(model).items())
        assert identify.path_of(model) == sorted(paths)[0]


def test_only_what_is_joined_takes_memory(tmp_path):
    path = write_diffusers(tmp_path, drawn(KLEIN))
    found, _ = reading.mapped([path])
    origins = diffusers.origins(load_file(path).keys(), path.name)
    file = path.stat().st_size
    own = {name for name, value in found.items() if value.untyped_storage().nbytes() == value.nbytes < file // 2}
    joined = {name for name, origin in origins.items() if len(origin.keys) > 1 or origin.swapped}
    assert joined == {n for n in origins if n.endswith("_attn.qkv.weight") or "adaLN" in n}
    assert joined <= own and all(reading.joined([t], False) is t for t in found.values())


@pytest.mark.long
def test_gradients_and_a_trained_lora(tmp_path):
    weights = drawn(KLEIN)
    values = write(tmp_path / "bfl.safetensors", LAYOUTS["bf16"], KLEIN, weights)
    model, case = ours(write_diffusers(tmp_path, weights, 2)), problem(1, dtype=torch.float32)
    (found, grads), (expected, wanted) = gradients(model, case), gradients(plain(values), case)
    assert error(found, expected) <= 1e-5 and all(error(a, b) <= 1e-5 for a, b in zip(grads, wanted, strict=True))
    trainer, results = trained(model, tmp_path)
    count = len(trainer.adapters.names)
    assert results.certificate.endswith(f"all {count} layers, 100% of the trained strength")
    saved, base = load_file(results.lora_path), plain(values)
    fresh = ours(tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors")
    effect = predict(lora.apply(base, saved, 1.0)) - predict(base)
    assert error(predict(lora.apply(fresh, saved, 1.0, lora.BYPASS)) - predict(fresh), effect) <= 1e-3


def test_stock_comfyui_does_not_load_it(tmp_path):
    """If a newer one does, this pack need not."""
    path = write_diffusers(tmp_path, drawn(KLEIN))
    with pytest.raises((KeyError, RuntimeError)), torch.inference_mode():
        comfy.sd.load_diffusion_model(str(path))


def test_planner_and_fit_count_its_bytes(tmp_path):
    weights = drawn(KLEIN)
    write(tmp_path / "bfl.safetensors", LAYOUTS["bf16"], KLEIN, weights)
    path, expected = write_diffusers(tmp_path, weights, 3), planned.of_files([tmp_path / "bfl.safetensors"])
    found = planned.of_files(sorted(tmp_path.glob("diffusion*.safetensors")))
    assert (found.linears, found.stored, found.plain) == (expected.linears, expected.stored, expected.plain)
    row = type("Row", (), {"sizes": (256, 2, 2, 96)})()
    assert fit._weights(row, path).total == expected.total
    _, text = fit.chosen_precision(ModelSettings("klein-4b"), (path, path, path), fit.Surroundings(Machine(8e9)))
    assert path.name in text  # of another flavour: left to the loader, which names it
    with pytest.raises(UserError, match=r"is FLUX.2 256/2/2/96, not klein-4b"):
        identify.require_flavour(ours(path), flavour("klein-4b"), path.name)


@pytest.mark.parametrize(
    "change, message",
    [
        ("cut", r"lacks 1 weight, transformer_blocks.1.attn.to_v.weight first: download it again"),
        ("scales", r"has diffusers' names and 1 tensors .* transformer_blocks.0.attn.to_q.weight.absmax first; use"),
        ("types", r"transformer_blocks.0.attn.to_v.weight differ in type or width; download it again"),
        ("part", r"is one of 2 parts, but .*-00002-of-00002.safetensors is not beside it"),
    ],
)
def test_what_cannot_be_converted_exactly_is_refused_in_a_sentence(change, message, tmp_path):
    path = write_diffusers(tmp_path, drawn(KLEIN), 2 if change == "part" else 1)
    found = load_file(path)
    if change == "cut":
        del found["transformer_blocks.1.attn.to_v.weight"]
    elif change == "scales":
        found["transformer_blocks.0.attn.to_q.weight.absmax"] = torch.zeros(4)
    elif change == "types":
        found["transformer_blocks.0.attn.to_v.weight"] = found["transformer_blocks.0.attn.to_v.weight"].float()
    else:
        path.with_name("diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    save_file(found, path)
    with pytest.raises(UserError, match=message):
        ours(path)


def test_a_merge_into_it_is_refused_in_a_sentence(tmp_path):
    path = write_diffusers(tmp_path, drawn(KLEIN))
    with pytest.raises(UserError, match="is a FLUX.2 transformer in diffusers' names; here ComfyUI's are needed"):
        merge.merge(path, [], tmp_path / "merged.safetensors")


def test_the_order_of_q_k_and_v_and_of_shift_and_scale_is_seen(made, monkeypatch):
    """So the tests above can fail for either."""
    _, transformer, folder = made
    x, t, conditions, _ = problem(1, dtype=torch.float32)
    expected = by_diffusers(transformer, x, t, conditions)
    exact = diffusers.origins

    def changed(change):
        monkeypatch.setattr(diffusers, "origins", lambda *a: {n: change(o) for n, o in exact(*a).items()})
        return error(predict_on(ours(first(folder / "whole")), x, t, conditions), expected)

    assert changed(lambda o: o) <= 1e-5
    assert changed(lambda o: diffusers.Origin(o.keys[::-1], o.swapped)) > 1e-3
    assert changed(lambda o: diffusers.Origin(o.keys)) > 1e-3
