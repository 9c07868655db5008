"""Gradients of the adapters on ComfyUI's own model against finite differences, in float64."""

import comfy.ldm.flux.layers
import comfy.ldm.flux.math
import comfy.model_management
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from support import adapters_for, brief_flux2, drawn, loss_of, problem, tiny_flux2

from flux2_train.host.borrowed.borrow import borrow, linears, training_mode
from flux2_train.host.borrowed.velocity import velocity


@pytest.fixture
def rope_in_float64(monkeypatch):
    """Core rounds its rotary angles to fp32 whatever the model's dtype; finite differences need the digits."""
    rope = comfy.ldm.flux.math.rope
    monkeypatch.setattr(comfy.ldm.flux.layers, "rope", lambda pos, dim, theta: rope(pos, dim, theta).double())


def float64_model(make=tiny_flux2, **kwargs):
    model = make(**kwargs)
    model.model.diffusion_model.double()
    model.model.diffusion_model.dtype = torch.float64
    model.model.manual_cast_dtype = None
    return model


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind, references, batch", [("klein", 0, 2), ("dev", 0, 1), ("klein", 2, 3)])
def test_gradients_equal_finite_differences(full_size, rope_in_float64, checkpointing, kind, references, batch):
    model = float64_model(tiny_flux2 if full_size else brief_flux2, guidance=kind == "dev")
    adapters, case = adapters_for(model, dtype=torch.float64), problem(batch, references)
    parameters = adapters.trainable()
    with borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
        gradients = torch.autograd.grad(loss_of(borrowed, case), parameters)
        pairs = list(enumerate(zip(parameters, gradients, strict=True)))
        for number, (parameter, gradient) in pairs if full_size else drawn(pairs, 6):
            direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).double()
            exact = (gradient * direction).sum().item()
            assert exact == pytest.approx(central_difference(borrowed, case, parameter, direction), rel=2e-6, abs=1e-12)


def central_difference(model, case, parameter, direction, step=1e-4):
    """Fourth-order difference quotient of the loss along a direction of one parameter."""
    values = {}
    with torch.no_grad():
        for k in (-2, -1, 1, 2):
            parameter += k * step * direction
            values[k] = loss_of(model, case).item()
            parameter -= k * step * direction
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


def test_checkpointing_changes_no_bit():
    model = brief_flux2()
    adapters = adapters_for(model)
    case = problem(dtype=torch.float32)
    found = []
    for checkpointing in (False, True):
        with borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
            found.append(torch.autograd.grad(loss_of(borrowed, case), adapters.trainable()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_the_layer_norm_copies_gradients_are_wrong(monkeypatch, rope_in_float64):
    """The remedy is needed: taking it out must not go unnoticed."""
    import flux2_train.host.borrowed.borrow as host

    model = float64_model(brief_flux2)
    adapters, case = adapters_for(model, dtype=torch.float64), problem()

    def gradients():
        with borrow(model, adapters.deltas(), checkpointing=True) as borrowed, training_mode():
            return torch.autograd.grad(loss_of(borrowed, case), adapters.trainable())

    right = gradients()
    monkeypatch.setattr(host, "_layer_norm", lambda original, x: original(x))
    try:
        wrong = gradients()
    except RuntimeError as error:
        assert "inplace" in str(error) or "in-place" in str(error)
    else:
        assert not all((a - b).norm() <= 1e-4 * a.norm() for a, b in zip(right, wrong, strict=True))


def test_no_base_weight_is_saved_for_backward():
    model = brief_flux2()
    adapters = adapters_for(model)
    x, t, conditions, _ = problem(1, dtype=torch.float32)
    base = [p.detach() for p in model.model.diffusion_model.parameters() if p.ndim == 2]
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda v: (saved.append(v), v)[1], lambda v: v)
    with borrow(model, adapters.deltas(), checkpointing=False) as borrowed, training_mode(), hooks:
        velocity(borrowed, x, t, conditions)
    assert saved
    for weight in base:  # neither itself nor a copy, transposed or not
        assert not [v.shape for v in saved if v.ndim == 2 and (_equal(v, weight) or _equal(v.T, weight))]


def _equal(a, b):
    return a.shape == b.shape and torch.equal(a.to(b), b)


def test_gradients_of_a_quantised_model_are_those_of_its_dequantised_weights(rope_in_float64):
    quantised, plain = brief_flux2(format="scaled_fp8_e4m3"), brief_flux2()
    with torch.inference_mode():
        for name, layer in linears(plain).items():
            weight = linears(quantised)[name].weight
            layer.weight.copy_(weight.dequantize() if isinstance(weight, QuantizedTensor) else weight)
    found = []
    for model in (quantised, plain):
        adapters = adapters_for(model)
        with borrow(model, adapters.deltas()) as borrowed, training_mode():
            found.append(torch.autograd.grad(loss_of(borrowed, problem(dtype=torch.float32)), adapters.trainable()))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_velocity_is_the_untouched_models():
    model = brief_flux2(guidance=True)
    x, t, conditions, _ = problem(2, references=1, dtype=torch.float32)
    adapters = adapters_for(model)
    adapters.enabled = False
    with borrow(model, adapters.deltas()) as borrowed, training_mode():
        ours = velocity(borrowed, x, t, conditions).detach()
    assert comfy.model_management.in_training is False
    # ComfyUI's own way to a prediction: extra_conds, then apply_model, which returns x - t v
    with torch.inference_mode():
        for i, condition in enumerate(conditions):
            one = x[i : i + 1]
            conds = model.model.extra_conds(
                cross_attn=condition.embeds, pooled_output=None, noise=one, device=one.device, guidance=4.0,
                reference_latents=list(condition.references),
            )  # fmt: skip
            inputs = {k: v.process_cond(batch_size=1).cond for k, v in conds.items()}
            denoised = model.model.apply_model(one, t[i : i + 1], transformer_options={}, **inputs)
            theirs = (one - denoised) / t[i]
            assert torch.allclose(ours[i : i + 1], theirs, atol=2e-5, rtol=1e-4)
