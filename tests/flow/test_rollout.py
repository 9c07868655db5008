"""The way of an input that the model samples itself: its times, Euler's and Heun's steps, and ReflexFlow's losses."""

import math

import pytest
import torch
from comfy_extras.nodes_flux import get_schedule

from flux2_train.flow.rollout import drift_loss, drift_weights, path, probability_at, rolled
from flux2_train.flow.times import empirical_mu


def start(values, t, offsets, steps=3, mu=0.0):
    """x_t, target, times and paths of samples of one pixel, from (x0, noise)."""
    x0, noise = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1, 1) for each in zip(*values, strict=True))
    times = torch.tensor(t)
    x_t = (1 - times.view(-1, 1, 1, 1)) * x0 + times.view(-1, 1, 1, 1) * noise
    paths = [path(each, offset, steps, mu) if offset else [each] for each, offset in zip(t, offsets, strict=True)]
    return x_t, noise - x0, times, paths


def test_simpletuners_example():
    """Four times 1, 2/3, 1/3, 0; x0 = 0, noise = 1; from the first to the third with a velocity of 0.1 everywhere."""
    x = rolled(*start([(0.0, 1.0)], [1 / 3], [2]), lambda rows, x, t: torch.full_like(x, 0.1))
    assert x.item() == pytest.approx(1 - 0.1 * 2 / 3, abs=1e-6) == pytest.approx(0.9333, abs=1e-4)


@pytest.mark.parametrize("tokens, steps", [(256, 20), (4096, 20), (1024, 4)])
def test_from_a_time_of_the_schedule_the_path_is_the_schedule_that_is_sampled_with(tokens, steps):
    schedule = get_schedule(steps, tokens).tolist()  # ComfyUI's own node Flux2Scheduler
    mu = empirical_mu(tokens, steps)
    for place in range(1, steps):
        for offset in range(1, place + 1):
            assert path(schedule[place], offset, steps, mu) == pytest.approx(
                schedule[place - offset : place + 1], abs=1e-5
            )


def test_a_path_ends_at_its_time_and_starts_at_pure_noise_where_the_schedule_is_over():
    assert path(0.8, 1, 4, 0.0) == pytest.approx([1.0, 0.8])  # 0.2 of a step of 0.25 lies before
    assert path(0.8, 3, 4, 0.0) == pytest.approx([1.0, 0.8])
    assert path(0.6, 2, 4, 0.0) == pytest.approx([1.0, 0.85, 0.6])
    assert path(0.6, 1, 4, 0.0) == pytest.approx([0.85, 0.6])
    assert path(1.0, 2, 4, 0.0) == [1.0]  # nothing is before pure noise
    for t in (0.01, 0.37, 0.99):
        times = path(t, 5, 20, 2.0)
        assert times[-1] == t and times == sorted(times, reverse=True) and len(times) <= 6


def test_an_exact_velocity_stays_on_the_straight_line_and_the_others_stay_as_they_are():
    case = start([(0.5, -1.0), (2.0, 0.0), (1.0, 3.0)], [0.3, 0.6, 0.2], [3, 0, 1], steps=5)
    calls = []

    def velocity(rows, x, t):
        calls.append((rows, t.tolist()))
        return case[1][rows]

    x = rolled(*case, velocity)
    torch.testing.assert_close(x, case[0])
    assert torch.equal(x[1], case[0][1])
    assert [rows for rows, _ in calls] == [[0], [0], [0, 2]]  # samples on their way at a moment are one batch
    assert calls[-1][1] == pytest.approx([0.5, 0.4])


@pytest.mark.parametrize("heun, order", [(False, 1), (True, 2)])
def test_the_order_of_the_steps(heun, order):
    """dx/dt = x: the error of a way from 1 to 1/2 falls by 2^order where steps are half as long."""
    errors = []
    for steps in (20, 40):
        case = start([(0.0, 1.0)], [0.5], [steps // 2], steps=steps)
        x = rolled(*case, lambda rows, x, t: x, heun)
        errors.append(abs(x.item() - math.exp(-0.5)))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_reflexflows_losses_by_hand():
    """SimpleTuner's example: a squared error of 0.09 counts twice, and the direction is right."""
    clean, drifted, predicted = (torch.full((1, 1, 1, 1), value) for value in (0.6, 0.4, 0.7))
    weight = drift_weights(clean, drifted, 1.0)
    x, x0 = torch.full((1, 1, 1, 1), 0.3), torch.zeros(1, 1, 1, 1)
    loss = weight * (predicted - 1.0) ** 2 + 10 * drift_loss(predicted, x, x0).view(1, 1, 1, 1)
    assert loss.item() == pytest.approx(0.18)
    several = torch.tensor([0.0, 1.0, 3.0, -4.0]).view(1, 1, 2, 2)
    assert drift_weights(several, torch.zeros(1, 1, 2, 2), 0.5).flatten().tolist() == [1.0, 1.25, 1.75, 0.0]
    assert drift_weights(several, several, 1.0).flatten().tolist() == [1.0] * 4
    one, other = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1), torch.tensor([[0.0, 2.0], [3.0, 3.0]])
    assert drift_loss(one, other.view(2, 2, 1, 1), torch.zeros(2, 2, 1, 1)).tolist() == pytest.approx(
        [2.0, 0.0], abs=1e-6
    )


@pytest.mark.parametrize("step, start, ramp, expected", [
    (1, 0, 0, 0.5), (10, 10, 0, 0.0), (11, 10, 0, 0.5), (11, 10, 5, 0.1), (15, 10, 5, 0.5), (99, 10, 5, 0.5),
])  # fmt: skip
def test_the_probability_over_a_run(step, start, ramp, expected):
    assert probability_at(0.5, step, start, ramp) == pytest.approx(expected)
