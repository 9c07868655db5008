"""Rectified flow's formulas against values computed by hand."""

import math

import pytest
import torch

from flux2_train.flow.target import differential_target, interpolate, mean_squared_error, velocity_target
from flux2_train.flow.times import linear_mu, shift


def test_path_ends_and_velocity():
    x0, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(interpolate(x0, noise, torch.tensor([0.0, 0.0])), x0)
    assert torch.equal(interpolate(x0, noise, torch.tensor([1.0, 1.0])), noise)
    a, b = (interpolate(x0, noise, torch.tensor([t, t], dtype=torch.float64)) for t in (0.3, 0.3 + 1e-6))
    assert torch.allclose((b - a) / 1e-6, velocity_target(x0, noise).double(), atol=1e-6)


def test_times_differ_within_a_batch():
    x0, noise = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert interpolate(x0, noise, torch.tensor([0.25, 0.75])).flatten().tolist() == [0.25, 0.75]


def test_shift_matches_its_published_values():
    # 1024 tokens: mu 0.63, factor 1.88; 4096 tokens: mu 1.15, factor 3.16
    assert linear_mu(1024) == pytest.approx(0.63)
    assert math.exp(linear_mu(4096)) == pytest.approx(3.158, abs=1e-3)
    t = torch.tensor([0.0, 0.5, 1.0])
    factor = math.exp(1.15)
    assert shift(t, 1.15).tolist() == pytest.approx([0.0, factor / (1 + factor), 1.0])
    assert torch.equal(shift(t, 0.0), t)


def test_differential_guidance_scales_the_gradient_and_nothing_else():
    target = torch.randn(2, 3, 4, 4)
    gradients = []
    for scale in (1.0, 3.0):
        prediction = torch.zeros(2, 3, 4, 4, requires_grad=True)
        mean_squared_error(prediction, differential_target(prediction, target, scale)).sum().backward()
        gradients.append(prediction.grad)
    assert torch.allclose(gradients[1], 3 * gradients[0], rtol=1e-6)
    assert differential_target(target, target, 1.0) is target


def test_error_is_a_mean_per_sample():
    prediction, target = torch.zeros(2, 2, 1, 1), torch.tensor([[1.0, 3.0], [0.0, 2.0]]).view(2, 2, 1, 1)
    assert mean_squared_error(prediction, target).tolist() == [5.0, 2.0]
