"""A recomputation leaves out products that nobody reads, and gradients keep their bits."""

import pytest
import torch
from support import CPU, adapters_for, brief_flux2, loss_of, problem, tiny_flux1

from flux2_train.adapters.live import Adapters, Site
from flux2_train.host.borrowed import frozen, unread
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
from flux2_train.host.borrowed.unread import unread_linears
from flux2_train.planning.layout import BLOCKS, OFF, SELECTIVE, Layout
from flux2_train.settings.adapter import AdapterSettings

LAST = ("linear2", "mlp.2")


@pytest.fixture
def multiplied(monkeypatch):
    """The layers that are multiplied forward, in order."""
    seen, original = [], frozen._multiplied

    def noting(layer, x, exactly, in_8_bits, adds_bias):
        if exactly.func is frozen._product:
            seen.append(layer)
        return original(layer, x, exactly, in_8_bits, adds_bias)

    monkeypatch.setattr(frozen, "_multiplied", noting)
    return seen


def gradients(model, adapters, layout, dtype=torch.float32):
    with borrow_as(model, adapters.deltas(), Borrowed(layout)) as borrowed, training_mode():
        return torch.autograd.grad(loss_of(borrowed, problem(1, dtype=dtype)), adapters.trainable())


def on_all_layers(model):
    """Adapters on every Linear, those that compute the modulation too."""
    sites = {name: Site(m.in_features, m.out_features, 4, 4) for name, m in linears(model).items()}
    with torch.inference_mode(False):
        adapters = Adapters(sites, AdapterSettings(), seed=0, device=CPU)
        generator = torch.Generator().manual_seed(5)
        for parameter in adapters.trainable():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapters


@pytest.mark.parametrize("layout", [Layout(BLOCKS), Layout(SELECTIVE), Layout(BLOCKS, offload_activations=True)])
def test_the_last_products_of_a_block_run_once(multiplied, layout):
    model = brief_flux2()
    adapters = adapters_for(model)
    plain = gradients(model, adapters, Layout(OFF))
    multiplied.clear()
    assert all(map(torch.equal, gradients(model, adapters, layout), plain))
    for name, layer in linears(model).items():
        if "_blocks." in name:
            assert multiplied.count(layer) == (1 if name.endswith(LAST) else 2), name


def test_they_run_twice_where_adapters_act_on_the_modulation(multiplied):
    """The gradient of a block's gate is the sum of its outputs times their gradient."""
    model = brief_flux2()
    adapters = on_all_layers(model)
    plain = gradients(model, adapters, Layout(OFF))
    multiplied.clear()
    assert all(map(torch.equal, gradients(model, adapters, Layout(BLOCKS)), plain))
    assert {multiplied.count(layer) for name, layer in linears(model).items() if name.endswith(LAST)} == {2}


@pytest.mark.parametrize("kind, times", [({"dora": True}, 2), ({"kind": "lokr"}, 1), ({"dropout": 0.1}, 1)])
def test_dora_reads_the_output_and_other_adapters_do_not(multiplied, kind, times):
    model = brief_flux2()
    adapters = adapters_for(model, **kind)
    plain = gradients(model, adapters, Layout(OFF))
    multiplied.clear()
    assert all(map(torch.equal, gradients(model, adapters, Layout(BLOCKS)), plain))
    assert {multiplied.count(layer) for name, layer in linears(model).items() if name.endswith(LAST)} == {times}


def test_float16_reads_the_output():
    """There blocks end with nan_to_num, whose gradient is zero where an output is not finite."""
    layer = torch.nn.Linear(2, 2)
    with unread.Recomputing(frozenset({layer})):
        found = [unread.is_unread(layer, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    assert found == [True, True, False] and not unread.is_unread(layer, torch.float32)


def test_blocks_with_their_own_modulation_multiply_everything():
    blocks = tiny_flux1().model.diffusion_model.double_blocks
    assert unread_linears(blocks[0], "double_blocks.0", {}) == frozenset()


def test_a_gradient_that_needs_what_was_left_out_is_not_a_number(monkeypatch):
    """A mistake in what counts as unread stops a step, and does not teach it something wrong."""
    monkeypatch.setattr(unread, "UNREAD", ("linear1",))
    model = brief_flux2()
    assert not all(gradient.isfinite().all() for gradient in gradients(model, adapters_for(model), Layout(BLOCKS)))
