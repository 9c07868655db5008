"""Weights that have to be made are made by whoever reads one, in whatever way, and by nobody who only looks at them."""

import copy
import gc
import io
import weakref

import comfy.model_management
import pytest
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import load_file, save_file
from support import require_precision

from bench.shapes import flux2_shapes
from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.loading import load
from flux2_train.host.loading.awaited import is_awaited
from flux2_train.host.system import memory

QUANTISED = [
    "fp8 (scaled)",
    "nvfp4",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("mxfp8", "int8", "int4")),
]
LAYER, WIDTH = "single_blocks.0.linear1", 128


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path, generator = tmp_path_factory.mktemp("models") / "base-model.safetensors", torch.Generator().manual_seed(0)
    shapes = flux2_shapes(WIDTH, 1, 1, 96)
    save_file({name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes}, path)
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["autograd", "inference mode"], autouse=True)
def mode(request):
    with torch.inference_mode(request.param):
        yield


def loaded(source, precision):
    require_precision(precision)
    model = load.load_transformer(source, precision)
    assert all(map(is_awaited, model.model.diffusion_model.parameters()))
    return model


def weight_of(model):
    return linears(model)[LAYER].weight


def came(model):
    found = {not is_awaited(weight) for weight in model.model.diffusion_model.parameters()}
    assert len(found) == 1
    return found.pop()


@pytest.fixture(scope="module")
def real(source):
    return load_file(source)[f"{LAYER}.weight"].float()


READ = {
    "arithmetic": lambda w: w + 0,
    "in place": lambda w: w.mul_(1.0),
    "float": lambda w: w.double().float(),
    "to": lambda w: w.to(torch.float64),
    "copy": lambda w: w.clone(),
    "index": lambda w: w[:],
    "into another": lambda w: torch.empty(w.shape).copy_(w),
    "stack": lambda w: torch.stack([w, w])[0],
    "numpy": lambda w: torch.from_numpy(w.numpy()),
    "list": lambda w: torch.tensor(w.tolist()),
    "deepcopy": lambda w: copy.deepcopy(w),
    "pickle": lambda w: pickled(w),
    "storage": lambda w: torch.empty(0).set_(w.untyped_storage(), 0, w.shape, w.stride()),
}


def pickled(weight):
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", READ)
def test_whoever_reads_a_weight_gets_it(source, real, how):
    model = loaded(source, "fp32")
    found = READ[how](weight_of(model).data)
    assert came(model) and torch.equal(found.float(), real)


def test_its_address_is_that_of_the_weight(source):
    model = loaded(source, "fp32")
    address = weight_of(model).data_ptr()
    assert came(model) and address == weight_of(model).data_ptr()


@pytest.mark.parametrize("mode", [False], ids=["autograd"], indirect=True)
def test_a_product_with_it_is_differentiable_in_the_other_factor(source, real):
    model, x = loaded(source, "fp32"), torch.linspace(-1, 1, WIDTH).requires_grad_()
    F.linear(x, weight_of(model)).sum().backward()
    torch.testing.assert_close(x.grad, real.sum(0))


@pytest.mark.parametrize("precision", QUANTISED)
def test_quantised_ones_are_made_by_whoever_dequantises_or_multiplies(source, precision):
    expected = loaded(source, precision)
    comfy.model_management.load_models_gpu([expected])
    wanted = weight_of(expected).dequantize()
    for read in (lambda w: w.dequantize(), lambda w: F.linear(torch.eye(WIDTH).to(w.dtype), w).T):
        model = loaded(source, precision)
        weight = weight_of(model)
        assert isinstance(weight, QuantizedTensor) and isinstance(weight, torch.nn.Parameter)
        torch.testing.assert_close(read(weight).to(wanted), wanted)
        assert came(model)
    model = loaded(source, precision)
    for key, tensor in weight_of(model).state_dict("w").items():
        kept = weight_of(expected).state_dict("w")[key]
        assert torch.equal(bits(tensor), bits(kept)), key


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("precision", ["fp32", *QUANTISED])
def test_looking_at_weights_makes_none(source, precision):
    model = loaded(source, precision)
    inner = model.model.diffusion_model
    comfy.model_management.module_size(inner)
    model.model_size()
    model.clone()
    inner.requires_grad_(False)
    for state in (inner.state_dict(), dict(inner.named_parameters())):
        for tensor in state.values():
            if tensor.dtype != torch.uint8 or tensor.ndim != 1:  # what is text is there
                assert (tensor.device.type, tensor.numel() > 0, tensor.nbytes > 0) == ("cpu", True, True)
                assert repr(tensor) and tensor.is_contiguous() and not tensor.requires_grad
    if precision == "fp32":
        assert is_awaited(weight_of(model).data) and is_awaited(weight_of(model).detach())
        assert is_awaited(torch.nn.Parameter(weight_of(model), requires_grad=False))
    assert not came(model)


def test_moving_a_whole_module_moves_every_weight(source, real):
    for move in (lambda m: m.to(torch.float64), lambda m: m.half().float()):
        model = loaded(source, "fp32")
        inner = move(model.model.diffusion_model)
        assert len({weight.dtype for weight in inner.parameters()}) == 1
        torch.testing.assert_close(weight_of(model).float(), real, rtol=1e-3, atol=1e-6)


def test_a_state_dict_can_be_saved(source, tmp_path):
    model = loaded(source, "fp32")
    save_file(dict(model.model.diffusion_model.state_dict()), tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    assert all(torch.equal(saved[name], weight.float()) for name, weight in load_file(source).items())


def test_one_that_somebody_held_on_to_gives_the_weight_there_is_now(source, real):
    model = loaded(source, "fp32")
    held = weight_of(model)
    comfy.model_management.load_models_gpu([model])
    assert held.data_ptr() == weight_of(model).data_ptr()
    memory.unload(model)
    assert not came(model)
    assert torch.equal(held + 0, real) and came(model)


def test_they_keep_no_model_alive_and_say_so_when_it_is_gone(source):
    model = loaded(source, "fp32")
    held, core = weight_of(model), weakref.ref(model.model)
    del model
    gc.collect()
    assert core() is None
    with pytest.raises(RuntimeError, match="single_blocks.0.linear1.weight cannot be read: the model .* freed"):
        held + 0
