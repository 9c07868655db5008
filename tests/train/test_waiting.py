"""A step reads nothing from the device between its backward passes."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from support import adapters_for, brief_flux2, loss_of, problem
from test_trainer import SHORT

from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.objective import PreservationSettings
from flux2_train.train.history import BANDS, Unread, read, tally

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")  # for each of these the processor waits


@pytest.fixture
def waits(monkeypatch):
    """The names of READS in the order in which tensors with values of the model are read, and ``backward`` between."""
    log = []
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, _logged(log, name, getattr(torch.Tensor, name)))
    monkeypatch.setattr(torch.Tensor, "backward", _logged(log, "backward", torch.Tensor.backward))
    return log


def _logged(log, name, method):
    def call(self, *args, **kwargs):
        log.append(name)
        return method(self, *args, **kwargs)

    return call


def steps_log(brief_nano, robot, waits, **changes):
    """What a run's second step reads: the first has also to build things."""
    config = replace(SHORT, steps=2, batch=2, **changes)
    trainer = new_trainer(brief_nano.model, robot.embeds, robot.latents, config)
    update, at_step = trainer._step, []

    def marked(*args):
        del waits[:]
        result = update(*args)
        at_step.append(list(waits))
        return result

    trainer._step = marked
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    return at_step[1]


@pytest.mark.long
def test_nothing_is_read_between_backward_passes(brief_nano, robot, waits):
    each = PreservationSettings(every=1)
    log = steps_log(brief_nano, robot, waits, preservation=1.0, preservation_options=each)
    first, last = log.index("backward"), len(log) - 1 - log[::-1].index("backward")
    assert last > first and set(log[first : last + 1]) == {"backward"}
    assert "cpu" in log[last:]  # what was measured is read then


def test_reading_at_once_gives_the_sums_of_reading_each():
    g = torch.Generator().manual_seed(0)
    passes = []
    for count, weight in ((3, 0.25), (1, 0.25), (1, 0.0)):
        t, errors = torch.rand(count, generator=g), torch.rand(count, generator=g)
        passes.append(Unread(weight, errors.sum(), torch.rand((), generator=g), t, errors))
    passes.append(Unread(0.5, torch.zeros(()), torch.ones(()), torch.zeros(0), torch.zeros(0)))
    (found,) = read(passes)
    loss = sum(p.weight * p.loss.double() for p in passes)
    preservation = sum(p.weight * p.preservation.double() for p in passes)
    bands = sum(tally(p.t, p.errors) for p in passes[:2])
    assert torch.equal(found, torch.cat((loss[None], preservation[None], bands.flatten())))
    assert found.dtype == torch.float64 and found[2 : 2 + BANDS].sum() == 4


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_random_state_is_kept_for_dropout_alone(monkeypatch, dropout):
    model = brief_flux2()
    adapters, case, kept = adapters_for(model, dropout=dropout), problem(dtype=torch.float32), []
    get = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: (kept.append(1), get())[1])

    def gradients(checkpointing):
        with borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode(), adapters.dropping(0, 1):
            del kept[:]
            return torch.autograd.grad(loss_of(borrowed, case), adapters.trainable())

    whole = gradients(False)
    assert not kept
    recomputed = gradients(True)
    assert bool(kept) == bool(dropout)
    assert all(torch.equal(a, b) for a, b in zip(whole, recomputed, strict=True))


def test_of_a_delta_that_is_not_ours_nobody_knows_whether_it_draws():
    model = brief_flux2()
    name = "single_blocks.0.linear1"
    down, up = torch.randn(2, 128, requires_grad=True), torch.randn(9 * 128, 2, requires_grad=True)
    delta = {name: lambda x, y, base: torch.nn.functional.dropout(x, 0.5, True) @ down.T @ up.T}
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        with borrow(model, delta, checkpointing) as borrowed, training_mode():
            found.append(torch.autograd.grad(loss_of(borrowed, problem(dtype=torch.float32)), (down, up)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
