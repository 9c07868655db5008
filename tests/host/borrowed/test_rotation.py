"""RoPE by comfy-kitchen's kernel: forward ComfyUI's bits, backward against a product of complex numbers in float64."""

import comfy.ldm.flux.math
import pytest
import torch
from support import adapters_for, brief_flux2, loss_of, problem

from flux2_train.host.borrowed import last_block, rotation
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.host.borrowed.rotation import Rotations

pytestmark = pytest.mark.skipif(not rotation.available(), reason="this ComfyUI has no comfy-kitchen")


def angles(tokens, seed=0):
    return 6 * torch.rand(1, 1, tokens, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embeddings(angle):
    parts = (angle.cos(), -angle.sin(), angle.sin(), angle.cos())
    return torch.stack(parts, -1).unflatten(-1, (2, 2)).float()


def turned(x, angle):
    """Pairs of neighbouring channels of ``x`` as complex numbers, times exp(i angle)."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_forward_has_cores_bits_and_backward_turns_back(dtype, tolerance):
    g = torch.Generator().manual_seed(1)
    q, k, dq, dk = (torch.randn(2, 3, 10, 128, generator=g).to(dtype) for _ in range(4))
    angle = angles(10)
    pe, rotations = embeddings(angle), Rotations()
    q.requires_grad_()
    k.requires_grad_()
    found = rotations(q, k, None, pe=pe, attn_mask=None, extra_options={})
    assert found["pe"] is None
    core = comfy.ldm.flux.math._apply_rope(q.detach(), k.detach(), pe)
    assert torch.equal(found["q"], core[0]) and torch.equal(found["k"], core[1])
    torch.autograd.backward((found["q"], found["k"]), (dq, dk))
    for grad, given in ((q.grad, dq), (k.grad, dk)):
        exact = turned(given, -angle)
        assert grad.dtype == dtype and (grad.double() - exact).norm() <= tolerance * exact.norm()


def test_each_passes_two_kinds_of_places_turn_back_by_their_own():
    rotations, first, second = Rotations(), embeddings(angles(4)), embeddings(angles(4, 1))
    for pe in (first, second, first, second):
        assert torch.equal(rotations.back(pe), pe.mT)
    assert rotations.back(first) is rotations.back(first) and len(rotations.transposed) == 2


def test_what_the_kernel_cannot_do_is_left_to_comfyui():
    q, pe = torch.zeros(1, 1, 4, 128, dtype=torch.float64), embeddings(angles(4))
    assert Rotations()(q, q, q, pe=pe) == {}
    assert Rotations()(q.float(), q.float(), q, pe=None) == {}
    assert Rotations()(q.float(), q.float(), q, pe=pe.double()) == {}
    assert Rotations()(q.to("meta").float(), q.to("meta").float(), q, pe=pe.to("meta")) == {}


def test_every_block_rotates_so_and_a_models_own_patch_comes_first(monkeypatch):
    model, seen = brief_flux2(), []
    adapters, case = adapters_for(model), problem(2, 1, dtype=torch.float32)

    def results(model):
        with borrow(model, adapters.deltas()) as borrowed, training_mode():
            loss = loss_of(borrowed, case)
            return [loss.detach(), *torch.autograd.grad(loss, adapters.trainable())]

    with monkeypatch.context() as patches:  # a patched MODEL computes all rows of its last block
        patches.setattr(last_block, "read_rows", lambda *_: None)
        ours = results(model)
    patched = model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, pe=None, **_: seen.append(pe is not None) or {})
    assert all(torch.equal(a, b) for a, b in zip(results(patched), ours, strict=True))
    if not seen:
        pytest.skip("this ComfyUI's FLUX.2 asks no attn1_patch")
    assert len(seen) == 6 and all(seen)  # three blocks, each run twice
    assert len(patched.model_options["transformer_options"]["patches"]["attn1_patch"]) == 1

    def unused(*_):
        raise AssertionError("ComfyUI rotates")

    monkeypatch.setattr(comfy.ldm.flux.math, "apply_rope", unused)
    results(model)
    monkeypatch.undo()
    monkeypatch.setattr(rotation, "available", lambda: False)
    for found, core in zip(ours, results(model), strict=True):
        assert (found - core).norm() <= 1e-5 * core.norm()
