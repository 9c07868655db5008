"""GGUF models train like the weights that they mean; their loader is ComfyUI-GGUF's own, where COMFYUI_GGUF names it.

What of that pack made training fail, a tensor class whose ``clone`` gives itself back, is tested without it as well.
"""

import itertools
from contextlib import closing

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import gguf_files
import pytest
import torch
from safetensors.torch import load_file
from support import adapters_for, problem, tiny_caches, tiny_flux2
from test_neighbour import gradients

from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.lora import apply as lora
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.results import write_results
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.training import TrainingSettings

CELLS = list(itertools.product(gguf_files.BLOCKS, gguf_files.OUTER))
QUICK = [("Q8_0", "F16"), ("Q4_K", "F32"), ("Q2_K", "BF16"), ("BF16", "F16"), ("F16", "F32"), ("Q4_0", "F16")]
KINDS = [{}, {"dora": True}]


@pytest.fixture(scope="module")
def load(comfy_folders):
    """``load(blocks, outer, ...)``: the MODEL of a GGUF file from ComfyUI-GGUF, and core's of the same weights.

    Those are dequantised by ComfyUI-GGUF, which does it in fp16; with ``exact`` both are in fp32, core's by gguf.
    """
    pack = gguf_files.pack()

    def load(blocks, outer, exact=False, **layout):
        path = comfy_folders / "diffusion_models" / f"tiny-{blocks}-{outer}.gguf"
        meant = gguf_files.write(path, blocks, outer, **layout)
        with torch.inference_mode():
            loader = pack.NODE_CLASS_MAPPINGS["UnetLoaderGGUFAdvanced" if exact else "UnetLoaderGGUF"]()
            model = loader.load_unet(path.name, **({"dequant_dtype": "float32"} if exact else {}))[0]
            if not exact:
                meant = gguf_files.dequantised(path)
            return model, comfy.sd.load_diffusion_model_state_dict(meant, {"dtype": torch.float32})

    return load


def predict(model):
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return velocity(model, *problem(context=gguf_files.CONTEXT, dtype=torch.float32)[:3]).clone()


def assert_trains_as(model, plain, **kind):
    torch.testing.assert_close(predict(model), predict(plain), rtol=1e-5, atol=1e-5)
    adapters = adapters_for(plain, **kind)
    for checkpointing in (False, True):
        found, wanted = gradients(model, adapters, checkpointing), gradients(plain, adapters, checkpointing)
        assert found[0] == pytest.approx(wanted[0], rel=1e-5)
        for a, b in zip(found[1], wanted[1], strict=True):
            assert b.any() and (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("blocks, outer", QUICK)
def test_velocity_and_gradients_are_those_of_the_dequantised_weights(load, blocks, outer):
    assert_trains_as(*load(blocks, outer))


@pytest.mark.parametrize("blocks", ["Q5_1", "Q3_K"])
def test_they_are_those_that_gguf_itself_reads(load, blocks):
    assert_trains_as(*load(blocks, "BF16", exact=True))


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=["lora", "dora"])
@pytest.mark.parametrize("blocks, outer", CELLS)
def test_the_whole_table(load, blocks, outer, kind, exact):
    assert_trains_as(*load(blocks, outer, exact), **kind)


@pytest.mark.parametrize("layout", [{"arch": "pig"}, {"arch": None, "prefix": "model.diffusion_model."}])
def test_files_of_other_converters(load, layout):
    assert_trains_as(*load("Q5_0", "F16", **layout))


@pytest.mark.parametrize("blocks, outer", [("Q8_0", "F16"), ("F16", "F32")])
def test_a_lora_is_trained_saved_and_applied(load, tmp_path, blocks, outer):
    model, plain = load(blocks, outer)
    before = predict(model)
    config = TrainingSettings(name="x", steps=2, rank=2, learning_rate=0.01, validation_items=0,
                         adapter=AdapterSettings(dora=blocks == "F16"))  # fmt: skip
    with torch.inference_mode():
        trainers = [new_trainer(each, *tiny_caches(items=2), config) for each in (model, plain)]
        for trainer in trainers:
            with closing(trainer.run()) as run:
                list(run)
        found = write_results(trainers[0], tmp_path / "loras", RunFolder.create(tmp_path / "runs", "x"))
    for one, other in zip(*(trainer.adapters.trainable() for trainer in trainers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # Adam makes full steps of any gradient
    saved = load_file(found.lora_path)
    for mode in (lora.MERGED, lora.BYPASS):
        change, expected = (predict(lora.apply(each, saved, 1.0, mode)) - before for each in (model, plain))
        assert (change - expected).norm() < 1e-2 * expected.norm(), mode
    assert torch.equal(predict(model), before)


class Kept(torch.Tensor):
    """A weight whose ``clone`` and ``detach`` give itself back, and whose class its results keep, as GGMLTensor's."""

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self


class KeptLinear(comfy.ops.manual_cast.Linear):
    """A Linear of another pack that multiplies with its own weight as it is."""

    def forward_comfy_cast_weights(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    forward = forward_comfy_cast_weights


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_whose_clone_gives_itself_back_has_exact_gradients(dtype, kind):
    model, plain = tiny_flux2(), tiny_flux2()
    with torch.inference_mode():
        for name, layer in linears(model).items():
            weight = layer.weight.to(dtype)
            twin = KeptLinear(layer.in_features, layer.out_features, bias=False, device="meta")
            twin.weight = torch.nn.Parameter(weight.as_subclass(Kept), requires_grad=False)
            comfy.utils.set_attr(model.model.diffusion_model, name, twin)
            linears(plain)[name].weight.copy_(weight.float())
    kept = {name: layer.weight for name, layer in linears(model).items()}
    assert all(isinstance(weight, Kept) and weight.clone() is weight for weight in kept.values())
    adapters = adapters_for(plain, **kind)
    found, wanted = gradients(model, adapters), gradients(plain, adapters)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    for a, b in zip(found[1], wanted[1], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert all(layer.weight is kept[name] for name, layer in linears(model).items())
