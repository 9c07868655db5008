"""Every published layout of a transformer's file: Load FLUX.2 gives what stock ComfyUI gives, and it can be trained."""

import comfy.model_management
import comfy.quant_ops
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from newer_formats import teach
from published import DEV, KLEIN, LAYOUTS, drawn, tensors, write, write_diffusers
from safetensors.torch import load_file, save_file
from support import adapters_for, loss_of, problem, require_precision, tiny_caches

from flux2_train.errors import UserError
from flux2_train.formats import AS_IN_FILE, CHOICES, FORMATS
from flux2_train.host.borrowed.borrow import borrow, linears, training_mode
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.loading import load
from flux2_train.host.loading.weights import dtype_of
from flux2_train.host.lora import apply as lora
from flux2_train.host.lora.base_file import BaseFile
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.results import write_results
from flux2_train.settings.training import TrainingSettings

ROUNDING = ("int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8", "awq_w4a16")  # sampling rounds activations as well
STORED = [name for name, layout in LAYOUTS.items() if layout.format]
OFTEN = {"bf16", "fp8", "fp8mixed"}  # what runs always of the longer tests
ALWAYS = OFTEN | {"nvfp4", "int8 convrot", "scaled fp8", "checkpoint fp8"}


def cases(values, often):
    """Those that run always, and the others behind the mark of long tests."""
    return [
        v if often(v) else pytest.param(*v if isinstance(v, tuple) else (v,), marks=pytest.mark.slow) for v in values
    ]


@pytest.fixture(scope="module")
def weights():
    return {size: drawn(size) for size in (KLEIN, DEV)}


@pytest.fixture(autouse=True)
def _only_what_this_comfyui_has(request, monkeypatch):
    name = request.node.callspec.params.get("layout") if hasattr(request.node, "callspec") else None
    format = LAYOUTS[name].format if name in LAYOUTS else ""
    if format not in ("", "cast", *comfy.quant_ops.QUANT_ALGOS) and not teach(format, monkeypatch):
        pytest.skip(f"this ComfyUI has no {format}")


@pytest.fixture
def written(weights, tmp_path):
    """Writes a layout; gives its path and, by core's names, the values in it."""

    def make(layout, size=KLEIN):
        path = tmp_path / "model.safetensors"
        return path, write(path, LAYOUTS[layout], size, weights[size])

    return make


def predict(model, dtype=torch.float32):
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return velocity(model, *problem(1, dtype=dtype)[:3]).clone()


def ours(path, precision=AS_IN_FILE):
    with torch.inference_mode():
        return load.load_transformer(path, precision)


def stock(path, **options):
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path), model_options=options)


def plain(values):
    """Stock ComfyUI's MODEL of plain fp32 weights."""
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(dict(values), {"dtype": torch.float32})


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.long(cases=8)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", cases([KLEIN, DEV], lambda size: size == KLEIN), ids=["klein", "dev"])
def test_it_is_the_model_of_the_stock_loader(layout, size, written):
    path, _ = written(layout, size)
    model, expected = ours(path), stock(path)
    if LAYOUTS[layout].marked and not any(issubclass(kind, QuantizedTensor) for kind, _ in kinds_of(expected).values()):
        pytest.skip("this ComfyUI's own loader leaves the scales of such a file out")
    assert type(model.model) is type(expected.model)
    assert type(model.model.model_config) is type(expected.model.model_config)
    built, wanted = (dict(m.model.model_config.unet_config, dtype=None) for m in (model, expected))
    assert built == wanted  # on a CPU core stores bf16 as fp32, Load FLUX.2 as in the file
    assert error(predict(model), predict(expected)) <= 1e-6
    kinds, wanted = kinds_of(model), kinds_of(expected)
    assert kinds.keys() == wanted.keys()
    if LAYOUTS[layout].format not in ("", "cast"):
        assert kinds == wanted


def kinds_of(model):
    return {name: (type(w.data), w.dtype) for name, w in model.model.diffusion_model.named_parameters()}


def gradients(model, case):
    adapters = adapters_for(model)
    with borrow(model, adapters.deltas()) as borrowed, training_mode():
        with torch.no_grad():
            found = velocity(borrowed, *case[:3]).clone()
        return found, torch.autograd.grad(loss_of(borrowed, case), adapters.trainable())


@pytest.mark.long
@pytest.mark.parametrize("layout", cases(LAYOUTS, ALWAYS.__contains__))
def test_velocity_and_gradients_are_those_of_the_dequantised_weights(layout, written):
    path, values = written(layout)
    model, case = ours(path), problem(1, references=1, dtype=torch.float32)
    (found, grads), (expected, wanted) = gradients(model, case), gradients(plain(values), case)
    assert error(found, expected) <= 1e-5
    assert len(grads) == len(wanted) > 0
    for a, b in zip(grads, wanted, strict=True):
        assert error(a, b) <= 1e-5


def trained(model, tmp_path):
    """A LoRA of two steps, saved: its certificate is that the stock loader's LoRA acts as the trained one does."""
    config = TrainingSettings(name="x", steps=2, rank=3, learning_rate=0.01, validation_items=0)
    with torch.inference_mode():
        trainer = new_trainer(model, *tiny_caches(items=1), config)
        for _ in trainer.run():
            pass
        return trainer, write_results(trainer, tmp_path / "loras", RunFolder.create(tmp_path / "runs", "x"))


@pytest.mark.long
@pytest.mark.parametrize("layout", cases(LAYOUTS, OFTEN.__contains__))
def test_a_lora_is_trained_saved_and_applied(layout, written, tmp_path):
    path, values = written(layout)
    model = ours(path)
    trainer, found = trained(model, tmp_path)
    count = len(trainer.adapters.names)
    assert count > 10 and found.certificate.endswith(f"all {count} layers, 100% of the trained strength")
    saved, base = load_file(found.lora_path), plain(values)
    before, exact = predict(base), predict(lora.apply(base, saved, 1.0, lora.BYPASS))
    fresh = ours(path)
    if LAYOUTS[layout].format not in ROUNDING:
        there = predict(fresh)
        assert error(predict(lora.apply(fresh, saved, 1.0, lora.BYPASS)) - there, exact - before) <= 1e-3
    assert (exact - before).norm() > 1e-3 * before.norm()


@pytest.mark.long(cases=4)
@pytest.mark.parametrize("layout, precision", cases(
    [(layout, precision) for layout in ("bf16", "checkpoint", "diffusers") for precision in CHOICES],
    lambda case: case[0] == "bf16" or case == ("diffusers", "fp8 (scaled)"),
))  # fmt: skip
def test_a_bf16_file_is_stored_in_every_precision(layout, precision, weights, tmp_path):
    """As the file of core's names, whose formats ``test_quantise`` measures; the plain ones as the stock loader."""
    require_precision(precision)
    assert precision in load.precisions()
    reference = tmp_path / "reference.safetensors"
    write(reference, LAYOUTS["norms named weight"], KLEIN, weights[KLEIN])
    if layout == "diffusers":
        path = write_diffusers(tmp_path, weights[KLEIN], parts=3)
    else:
        path = tmp_path / "model.safetensors"
        write(path, LAYOUTS[layout], KLEIN, weights[KLEIN])
    found = predict(ours(path, precision))
    assert torch.equal(found, predict(ours(reference, precision)))
    if precision not in FORMATS and precision != AS_IN_FILE:
        assert error(found, predict(stock(reference, dtype=dtype_of(precision)))) <= 1e-6


@pytest.mark.parametrize("layout", STORED)
@pytest.mark.parametrize("precision", ["bf16", "fp8 (scaled)"])
def test_a_quantised_file_is_taken_as_it_is_only(layout, precision, written):
    path, _ = written(layout)
    with pytest.raises(UserError, match="model.safetensors is already quantised: set the precision to 'as in file'"):
        ours(path, precision)


@pytest.mark.parametrize("layout", STORED)
def test_a_merge_reads_the_layers_that_the_file_means(layout, written):
    path, values = written(layout)
    with BaseFile(path) as file:
        assert len(file.sizes) == len([name for name, value in values.items() if value.ndim == 2])
        for name in file.sizes:
            with file.weight(name) as weight:
                assert torch.equal(weight, values[f"{name}.weight"]), name


def test_old_input_scales_are_left_out_where_they_are_one(weights, tmp_path):
    """As core does, which looks at their value before any weight is there."""
    found, _ = tensors(LAYOUTS["scaled fp8"], KLEIN, weights[KLEIN])
    scales = {name: value.item() for name, value in found.items() if name.endswith(".scale_input")}
    assert set(scales.values()) == {1.0, 2.0, 3.0}
    save_file(found, tmp_path / "old.safetensors")
    model, expected = ours(tmp_path / "old.safetensors"), stock(tmp_path / "old.safetensors")
    predict(model)
    for name, scale in scales.items():
        layers = [linears(m)[name.removesuffix(".scale_input")] for m in (model, expected)]
        scales = [getattr(layer, "input_scale", None) for layer in layers]
        assert [None if value is None else value.item() for value in scales] == [None if scale == 1 else scale] * 2


def test_a_file_without_a_norm_is_refused(weights, tmp_path):
    found, _ = tensors(LAYOUTS["bf16"], KLEIN, weights[KLEIN])
    del found["single_blocks.1.norm.key_norm.scale"]
    save_file(found, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"cut.safetensors lacks 1 weight, single_blocks.1.norm.key_norm.weight"):
        ours(tmp_path / "cut.safetensors")
