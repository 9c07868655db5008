"""Forward and gradients of the engine against an independent, out-of-place implementation of FLUX.2 (reference.py)."""

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from reference import Flux2
from support import adapters_for, problem, tiny_flux2

from flux2_train.host.borrow import borrow, training_mode
from flux2_train.host.velocity import velocity

LENGTH = 512


def plain_weights(model):
    """The MODEL's weights as ordinary float64 tensors, dequantised."""
    state = model.model.diffusion_model.named_parameters()
    with torch.inference_mode(False):
        return {
            name: (p.dequantize() if isinstance(p, QuantizedTensor) else p.detach()).clone().double()
            for name, p in state
        }


def by_reference(model, adapters, case):
    """The reference's velocity and its gradients of every A and B, in float64: it adds no rounding of its own."""
    x, t, conditions, weights = case
    pairs = {
        n: tuple(m.double().requires_grad_() for m in pair[:2]) + pair[2:] for n, pair in adapters.matrices().items()
    }
    text = torch.cat([torch.nn.functional.pad(c.embeds, (0, 0, LENGTH - c.embeds.shape[1], 0)) for c in conditions])
    references = [torch.cat(r).double() for r in zip(*(c.references for c in conditions), strict=True)]
    found = Flux2(plain_weights(model), pairs)(x.double(), t, text.double(), references, conditions[0].guidance)
    gradients = torch.autograd.grad((found * weights).mean(), [m for pair in pairs.values() for m in pair[:2]])
    return found.detach(), gradients


def by_engine(model, adapters, case, checkpointing):
    x, t, conditions, weights = case
    parts = [
        part["default"].weight for n in adapters.names for part in (adapters.layer(n).lora_A, adapters.layer(n).lora_B)
    ]
    with borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
        found = velocity(borrowed, x, t, conditions)
        return found.detach(), torch.autograd.grad((found * weights).mean(), parts)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind, references", [("klein", 0), ("dev", 0), ("klein", 2), ("dev", 2)])
@pytest.mark.parametrize("fp8", [False, True], ids=["fp32", "fp8"])
def test_forward_and_gradients_equal_the_reference(fp8, kind, references, checkpointing, batch):
    model = tiny_flux2(guidance=kind == "dev", fp8=fp8)
    adapters = adapters_for(model)
    case = problem(batch, references, dtype=torch.float32)
    expected, expected_gradients = by_reference(model, adapters, case)
    found, gradients = by_engine(model, adapters, case, checkpointing)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    total = torch.cat([g.flatten() for g in expected_gradients]).norm()
    difference = torch.cat([(a - b).flatten() for a, b in zip(gradients, expected_gradients, strict=True)]).norm()
    assert difference <= 1e-5 * total
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
