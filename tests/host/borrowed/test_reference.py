"""Forward and gradients of the engine against an independent, out-of-place implementation of FLUX.2 (reference.py)."""

import math

import comfy.ldm.flux.layers
import comfy.ldm.flux.model
import pytest
import reference
import torch
from comfy.quant_ops import QuantizedTensor
from reference import Flux2
from support import FORMATS, adapters_for, brief_flux2, drawn, problem, tiny_flux2
from test_gradients import float64_model

from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.host.borrowed.velocity import velocity

LENGTH, BRIEF = 512, 16  # text tokens that FLUX.2 reads, and brief_flux2
CASES = [(kind, references, batch) for kind in ("klein", "dev") for references in (0, 2) for batch in (1, 3)]
ADAPTERS = {
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "lokr of products": {"kind": "lokr", "lokr_factor": 4, "lokr_decompose_both": True},
}


def plain_weights(model):
    """The MODEL's weights as ordinary float64 tensors, dequantised, with the scale of AWQ's inputs in them."""
    with torch.inference_mode(False):
        found = {name: _plain(p) for name, p in model.model.diffusion_model.named_parameters()}
        for name in [n for n in found if n.endswith(".pre_quant_scale")]:
            found[name.replace("pre_quant_scale", "weight")] *= found.pop(name)
    return found


def _plain(parameter):
    tensor = parameter.dequantize() if isinstance(parameter, QuantizedTensor) else parameter.detach()
    return tensor.clone().double()


def changed_weights(adapters):
    """By Linear name the papers' formula for the weight in its place, and double copies of all parameters."""
    copies = {id(p): p.detach().double().requires_grad_() for p in adapters.trainable()}
    changes = {name: _change(adapters, name, copies) for name in adapters.names}
    return changes, [copies[id(p)] for p in adapters.trainable()]


def _change(adapters, name, copies):
    layer, config = adapters.layer(name), adapters.config
    p = {k.split(".")[0]: copies[id(v)] for k, v in layer.named_parameters() if id(v) in copies}
    scale = 4.0 / 2**0.5 if config.rslora else 4.0 / 2
    if config.kind == "loha":
        return lambda w: w + scale * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    if config.kind == "lokr":
        left, right = (
            p[f"lokr_{i}"] if f"lokr_{i}" in p else p[f"lokr_{i}_a"] @ p[f"lokr_{i}_b"] for i in ("w1", "w2")
        )
        return lambda w: w + scale * torch.kron(left, right)
    if not config.dora:
        return lambda w: w + scale * p["lora_B"] @ p["lora_A"]
    magnitude = copies[id(adapters.magnitude(name))]

    def dora(w):
        direction = w + scale * p["lora_B"] @ p["lora_A"]
        return magnitude[:, None] * direction / direction.detach().norm(dim=1, keepdim=True)

    return dora


def by_reference(model, adapters, case, length=LENGTH):
    """The reference's velocity and its gradients of every parameter, in float64: it adds no rounding of its own."""
    x, t, conditions, weights = case
    text = torch.cat([torch.nn.functional.pad(c.embeds, (0, 0, length - c.embeds.shape[1], 0)) for c in conditions])
    references = [torch.cat(r).double() for r in zip(*(c.references for c in conditions), strict=True)]
    changes, parameters = changed_weights(adapters)
    found = Flux2(plain_weights(model), changes)(x.double(), t, text.double(), references, conditions[0].guidance)
    return found.detach(), torch.autograd.grad((found * weights).mean(), parameters)


def by_engine(model, adapters, case, checkpointing):
    x, t, conditions, weights = case
    with borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
        found = velocity(borrowed, x, t, conditions)
        return found.detach(), torch.autograd.grad((found * weights).mean(), adapters.trainable())


def require_equal(model, adapters, case, length):
    expected, expected_gradients = by_reference(model, adapters, case, length)
    for checkpointing in (False, True):
        found, gradients = by_engine(model, adapters, case, checkpointing)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        for a, b in zip(gradients, expected_gradients, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.fixture
def all_in_float64(monkeypatch):
    """Core and the reference round the waves of time and places to fp32 in any dtype; here they do not."""
    monkeypatch.setattr(comfy.ldm.flux.layers, "rope", rotations)
    monkeypatch.setattr(comfy.ldm.flux.model, "timestep_embedding", lambda t, dim: waves(t))
    monkeypatch.setattr(reference, "sinusoids", waves)
    monkeypatch.setattr(reference, "RMS_EPS", torch.finfo(torch.float64).eps)


def rotations(places, dim, theta):
    """(B, L) to the rotations (B, L, dim / 2, 2, 2) that core's rope gives."""
    angles = places.double()[..., None] * theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    parts = (angles.cos(), -angles.sin(), angles.sin(), angles.cos())
    return torch.stack(parts, -1).unflatten(-1, (2, 2))


def waves(t):
    """(B,) to (B, 256), cosines first, of times in thousandths."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    angles = 1000 * t.double()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


@pytest.mark.long(cases=2)
@pytest.mark.parametrize("name", ["lora", *sorted(ADAPTERS.keys() - {"dora"})])  # whose norm is fp32 in any dtype
def test_what_differs_in_fp32_is_rounding(name, all_in_float64):
    """Every parameter drawn, in float64: nothing is left of it there. 1e-9 allows for 10^6 roundings in a row."""
    model = float64_model(guidance=True)
    adapters, case = adapters_for(model, dtype=torch.float64, **ADAPTERS.get(name, {})), problem(2, 1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.trainable():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    expected, expected_gradients = by_reference(model, adapters, case)
    found, gradients = by_engine(model, adapters, case, checkpointing=True)
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()


@pytest.mark.long
@pytest.mark.parametrize("format", FORMATS)
def test_every_format(full_size, format):
    make, length = (tiny_flux2, LENGTH) if full_size else (brief_flux2, BRIEF)
    for kind, references, batch in CASES if full_size else drawn(CASES, 2):
        model = make(guidance=kind == "dev", format=format)
        require_equal(model, adapters_for(model), problem(batch, references, dtype=torch.float32), length)


@pytest.mark.long(cases=4)
@pytest.mark.parametrize("format", ["fp32", "scaled_fp8_e4m3", "nvfp4_awq"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter(name, format, full_size):
    make, length = (tiny_flux2, LENGTH) if full_size else (brief_flux2, BRIEF)
    model = make(format=format)
    require_equal(model, adapters_for(model, **ADAPTERS[name]), problem(2, dtype=torch.float32), length)
