"""A frozen Linear with its LoRA as one function of autograd, against the formula in float64 and against the sum."""

import comfy.ops
import pytest
import torch
import torch.nn.functional as F
from support import adapters_for, brief_flux2, loss_of, problem

from flux2_train.adapters.parts import Factors
from flux2_train.host.borrowed.borrow import borrow, linears, training_mode
from flux2_train.host.borrowed.frozen import resident
from flux2_train.host.borrowed.lora_linear import LoraLinear, lora_linear

IN, OUT, RANK, SCALE = 24, 40, 3, 0.5
CPU = torch.device("cpu")


def layer_of(weight, bias=None, ops=comfy.ops.disable_weight_init):
    layer = ops.Linear(IN, OUT, bias=bias is not None, dtype=weight.dtype)
    with torch.inference_mode():
        layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        if bias is not None:
            layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def drawn(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = {"weight": (OUT, IN), "bias": (OUT,), "down": (RANK, IN), "up": (OUT, RANK), "x": (2, 7, IN)}
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}


def by_formula(values, x, grad, bias):
    """Output, and gradients of x, A and B, written out in float64 without autograd."""
    w, a, b = (values[name].double() for name in ("weight", "down", "up"))
    x, grad = x.double(), grad.double()
    y = x @ (w + SCALE * b @ a).T + (values["bias"].double() if bias else 0)
    rows, of_rows = x.flatten(0, -2), grad.flatten(0, -2)
    return y, grad @ (w + SCALE * b @ a), SCALE * b.T @ of_rows.T @ rows, SCALE * of_rows.T @ rows @ a.T


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sliced", [False, True])
def test_output_and_gradients_are_the_formulas(dtype, tolerance, bias, sliced):
    values = drawn(dtype)
    layer = layer_of(values["weight"], values["bias"] if bias else None)
    down, up = (values[name].float().requires_grad_() for name in ("down", "up"))  # masters are fp32
    whole = values["x"].clone().requires_grad_()
    x = whole[:, 2:] if sliced else whole  # as the blocks slice attention's output
    grad = torch.randn(*x.shape[:-1], OUT, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = lora_linear(layer, x, down, up, Factors(down.detach().to(dtype), up.detach().to(dtype), SCALE))
    y.backward(grad)
    found = (y.detach(), whole.grad[:, 2:] if sliced else whole.grad, down.grad, up.grad)
    assert down.grad.dtype == up.grad.dtype == torch.float32
    for ours, exact in zip(found, by_formula(values, x.detach(), grad, bias), strict=True):
        assert (ours.double() - exact).norm() <= tolerance * exact.norm()


def test_only_input_and_narrow_product_are_saved_and_the_output_may_be_changed():
    values, saved = drawn(), []
    down, up = (torch.nn.Parameter(values[name]) for name in ("down", "up"))
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.shape), t)[1], lambda t: t)
    with hooks:
        y = lora_linear(layer_of(values["weight"]), values["x"], down, up, Factors(down, up, SCALE))
    assert saved == [(2, 7, IN), (14, RANK)]
    y[:, :3] *= 2  # ComfyUI gates slices of a Linear's output in place
    y.sum().backward()
    exact = SCALE * F.linear(values["x"], down.detach())
    exact[:, :3] *= 2
    assert torch.allclose(up.grad, exact.flatten(0, 1).sum(0).expand(OUT, RANK), rtol=1e-5)
    assert down.grad is not None


def test_only_a_weight_that_acts_as_it_is_counts_as_resident():
    weight = drawn()["weight"]
    layer = layer_of(weight)
    assert resident(layer, torch.float32, CPU).data_ptr() == layer.weight.data_ptr()
    assert resident(layer, torch.bfloat16, CPU) is None
    assert resident(layer, torch.float32, torch.device("meta")) is None
    assert resident(layer_of(weight, drawn()["bias"]), torch.float32, CPU) is None
    assert resident(torch.nn.Linear(IN, OUT, bias=False), torch.float32, CPU) is None  # another pack's
    layer.weight_function = [lambda w: 2 * w]
    assert resident(layer, torch.float32, CPU) is None


@pytest.mark.long(cases=3)
@pytest.mark.parametrize("format", ["fp32", "bf16", "scaled_fp8_e4m3", "nvfp4_awq"])
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_it_is_the_sum_of_layer_and_adapter(monkeypatch, format, strength):
    """In the model, at the strengths of a slider: as when every Linear and its adapter are two terms of autograd."""
    model, calls = brief_flux2(format=format), []
    adapters, case = adapters_for(model), problem(2, 1, dtype=torch.float32)

    def results():
        with borrow(model, adapters.deltas()) as borrowed, training_mode(), adapters.at_strength(strength):
            loss = loss_of(borrowed, case)
            return [loss.detach(), *torch.autograd.grad(loss, adapters.trainable())]

    apply = LoraLinear.apply
    monkeypatch.setattr(LoraLinear, "apply", lambda *args: (calls.append(args[-1]), apply(*args))[1])
    fused = results()
    assert {id(layer) for layer in calls} == {id(linears(model)[name]) for name in adapters.names}
    monkeypatch.setattr(type(next(iter(adapters.deltas().values()))), "factors", lambda *_: None)
    for ours, apart in zip(fused, results(), strict=True):
        assert (ours - apart).norm() <= 2e-5 * apart.norm()


@pytest.mark.parametrize("options", [{"dora": True}, {"kind": "loha"}, {"kind": "lokr"}, {"dropout": 0.5}])
def test_other_adapters_are_called(options):
    model = brief_flux2()
    adapters = adapters_for(model, **options)
    delta = adapters.deltas()[adapters.names[0]]
    adapters.train()
    assert delta.factors(torch.float32) is None
    adapters.eval()
    assert (delta.factors(torch.float32) is None) == ("dropout" not in options)  # which acts in a step alone


def test_fp32_adapters_beside_a_bf16_model_are_called():
    delta = next(iter(adapters_for(brief_flux2(), compute="fp32").deltas().values()))
    assert delta.factors(torch.bfloat16) is None
    assert delta.factors(torch.float32).down.dtype == torch.float32


def test_matrices_are_cast_once_while_nothing_changes():
    adapters = adapters_for(brief_flux2())
    first, last = (adapters.deltas()[name] for name in (adapters.names[0], adapters.names[-1]))
    with adapters.unchanging():
        kept = first.factors(torch.bfloat16)
        assert kept.down is first.factors(torch.bfloat16).down and not kept.down.requires_grad
        assert last.factors(torch.bfloat16).up is last.factors(torch.bfloat16).up
        for factors, delta in ((kept, first), (last.factors(torch.bfloat16), last)):
            assert all(torch.equal(c, m.bfloat16()) for c, m in zip(factors[:2], delta.parameters(), strict=True))
    with torch.no_grad():
        first.parameters()[0].mul_(2)
    assert torch.equal(first.factors(torch.bfloat16).down, 2 * kept.down)
