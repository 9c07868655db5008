"""Blocks that keep what attention gave and compute the rest again."""

import gc
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import adapters_for, brief_flux2, loss_of, problem
from torch.utils._python_dispatch import TorchDispatchMode

from flux2_train.host.borrowed import recompute
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, training_mode
from flux2_train.host.borrowed.recompute import ATTENTION, Recompute, attended
from flux2_train.planning.layout import OFF, SELECTIVE, Layout

SHAPE = (1, 2, 24, 8)


class Counting(TorchDispatchMode):
    """Counts how often attention runs."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in ATTENTION
        return function(*args, **(kwargs or {}))


def attention(x, change=lambda y: y):
    return change(attended(F.scaled_dot_product_attention, x.sin(), x.cos(), x)).exp() * x


def gradient(block, layout):
    """(gradient, how often attention ran forwards) of a step through four such blocks."""
    run = Recompute(SimpleNamespace(layout=layout))
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Counting() as counting:
        x = start
        for number in range(4):
            x = run(block, number, x)
        x.square().mean().backward()
    return start.grad, counting.count


def test_attention_runs_once_and_the_gradient_is_the_same():
    plain, kept = gradient(attention, Layout(OFF)), gradient(attention, Layout(SELECTIVE))
    assert torch.equal(plain[0], kept[0]) and plain[1] == kept[1] == 4
    assert gradient(attention, Layout())[1] == 8  # and twice where it is computed again


def test_the_second_run_may_take_other_operations():
    """As where a weight is on the device already the first time, and has to be fetched the second time."""
    runs = []

    def block(x):
        runs.append(x)
        for _ in range(len(runs)):
            x = x[:, :].clone()
        return attention(x)

    assert torch.equal(gradient(block, Layout(SELECTIVE))[0], gradient(attention, Layout(OFF))[0]) and len(runs) == 8


def test_what_attention_gave_may_not_be_changed_in_place():
    with pytest.raises(RuntimeError, match="what attention gave was changed in place"):
        gradient(lambda x: attention(x, lambda y: y.mul_(2)), Layout(SELECTIVE))


@pytest.mark.long
@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_kept_after_the_step(backward):
    def kept():
        gc.collect()
        return sum(isinstance(each, torch.Tensor) and each.shape == SHAPE for each in gc.get_objects())

    before, run = kept(), Recompute(SimpleNamespace(layout=Layout(SELECTIVE)))
    x = run(attention, 0, torch.randn(SHAPE).requires_grad_())
    assert kept() > before
    if backward:
        x.mean().backward()
    del x
    assert kept() == before


def step_of_a_model(layout):
    """Gradients of a step of a FLUX.2."""
    model = brief_flux2()
    adapters = adapters_for(model)
    with borrow_as(model, adapters.deltas(), Borrowed(layout)) as borrowed, training_mode():
        return torch.autograd.grad(loss_of(borrowed, problem(1, dtype=torch.float32)), adapters.trainable())


def test_only_attentions_own_operations_are_looked_at(monkeypatch):
    """A dispatch mode over whole blocks, which have hundreds of operations, makes a card wait for the processor."""
    seen = []
    for kind in (recompute.Keeping, recompute.Giving):

        def dispatch(self, function, types, args=(), kwargs=None, original=kind.__torch_dispatch__):
            seen.append(function)
            return original(self, function, types, args, kwargs)

        monkeypatch.setattr(kind, "__torch_dispatch__", dispatch)
    plain = step_of_a_model(Layout(OFF))
    assert not seen
    assert all(map(torch.equal, step_of_a_model(Layout(SELECTIVE)), plain))
    assert sum(function in ATTENTION for function in seen) == 2 * 3  # twice in each block
    assert len(seen) <= 2 * 3 * 5  # with what brings it into shape and back
