"""The moving average against its published values; guards fire when they should and at no other time."""

import math

import numpy as np
import pytest
import torch

from flux2_train.errors import UserError
from flux2_train.train.ema import Ema
from flux2_train.train.guards import PATIENCE, WINDOW, BadLosses, DeadAdapters, Divergence, SlowSteps


def run_ema(values, decay, warmup=0, ema=None):
    p = ema.parameters[0] if ema else torch.nn.Parameter(torch.zeros(1))
    ema = ema or Ema([p], decay, warmup)
    found = []
    for value in values:
        p.data.fill_(value)
        ema.update()
        found.append(ema.shadow[0].item())
    return ema, found


def test_ema_has_its_published_values():
    assert run_ema([1, 2, 3], 0.9, 3)[1] == pytest.approx([1, 2, 2.1])
    # without warm-up it starts from the weights it was made with, here 0
    assert run_ema([1, 2, 3], 0.9)[1] == pytest.approx(np.cumsum([0.1, 0.19, 0.271]))


def test_ema_puts_the_mean_in_place_and_the_weights_back():
    ema, found = run_ema([1, 2, 3], 0.9, 3)
    with ema.in_place():
        assert ema.parameters[0].item() == pytest.approx(2.1)
    assert ema.parameters[0].item() == 3 and found[-1] == pytest.approx(2.1)
    with pytest.raises(KeyError), ema.in_place():
        raise KeyError
    assert ema.parameters[0].item() == 3


def test_ema_goes_on_where_it_was():
    values = np.random.default_rng(0).normal(size=12).tolist()
    _, whole = run_ema(values, 0.8, 4)
    first, _ = run_ema(values[:5], 0.8, 4)
    second, _ = run_ema([], 0.8, 4)
    second.load_state_dict(first.state_dict())
    assert run_ema(values[5:], 0.8, 4, second)[1] == pytest.approx(whole[5:])


def test_bad_losses_are_skipped_counted_and_stop_after_a_row():
    guard = BadLosses(limit=3)
    answers = [guard.skip(loss, ["a.png"], 7) for loss in (math.nan, 0.3, math.inf, -math.inf, 0.2)]
    assert answers == [True, False, True, True, False] and (guard.total, guard.in_a_row) == (3, 0)
    guard.skip(math.nan, ["b.png"], 8), guard.skip(math.nan, ["c.png"], 8)
    with pytest.raises(UserError, match=r"The loss is nan after 9 steps, 3 times in a row \(images: .*c\.png"):
        guard.skip(math.nan, ["c.png"], 9)


def test_divergence_is_told_once_and_not_for_noise():
    noise = np.random.default_rng(0).lognormal(-1, 0.5, 500)
    guard = Divergence(3.0)
    assert not any(guard.check(loss) for loss in noise)
    warnings = [text for loss in 1.3 ** np.arange(40) for text in [guard.check(loss)] if text]
    assert len(warnings) == 1 and "training diverges" in warnings[0]
    with pytest.raises(UserError, match="training diverges"):
        [stopping.check(loss) for stopping in [Divergence(3.0, stop=True)] for loss in [*noise, *[9.0] * WINDOW]]
    assert not any(Divergence(0.0).check(loss) for loss in 2.0 ** np.arange(60))


def layers():
    return {name: [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2)] for name in ("one", "two")}


def test_an_adapter_is_dead_when_both_factors_stay_without_gradient():
    found = layers()
    guard = DeadAdapters(found)
    for parameters in found.values():
        parameters[0].grad, parameters[1].grad = torch.zeros(2, 2), torch.ones(2, 2)  # as at the start, where B is 0
    for _ in range(2 * PATIENCE):
        guard.check(0.5, guard.sizes())
    found["two"][1].grad = torch.zeros(2, 2)
    for _ in range(PATIENCE - 1):
        guard.check(0.5, guard.sizes())
    guard.check(0.0, guard.sizes())  # no loss, no gradient to be expected
    with pytest.raises(UserError, match=r"1 of 2 adapters get no gradient \(two\)"):
        guard.check(0.5, guard.sizes())


def test_a_gradient_in_between_clears_the_count():
    found = layers()
    guard = DeadAdapters(found)
    for step in range(4 * PATIENCE):
        for parameters in found.values():
            parameters[0].grad = torch.full((2, 2), float(step % PATIENCE == 0))
        guard.check(0.5, guard.sizes())


def test_slow_steps_are_no_matter_of_memory_where_none_has_spilled():
    """Many small operations take longer than their arithmetic, and a busy processor makes them slower still."""
    guard = SlowSteps()
    assert not any(guard.check(9.0, 1.0, spills=False) for _ in range(40))
    assert not any(guard.check(90.0, 1.0, spills=False) for _ in range(40))
    assert "spills" in guard.check(90.0, 1.0, spills=True)
