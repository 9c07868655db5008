"""Losses against numpy and closed forms, and guidance against its definition."""

import math

import numpy as np
import pytest
import torch

from flux2_train.flow import guidance, loss
from flux2_train.flow.preservation import outside
from flux2_train.flow.target import differential_target

D = torch.linspace(-3, 3, 241, dtype=torch.float64).view(1, 1, 1, -1)
C = torch.tensor([0.4], dtype=torch.float64)


def error(shape=(2, 3, 4, 6), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_squares_and_absolutes():
    assert np.allclose(loss.squared(D), D.numpy() ** 2) and np.allclose(loss.absolute(D), np.abs(D.numpy()))


def test_huber_is_a_square_inside_and_a_line_outside():
    small, large = torch.full((1, 1, 1, 1), 1e-4).double(), torch.full((1, 1, 1, 1), 1e4).double()
    assert loss.huber(small, C).item() == pytest.approx(1e-8, rel=1e-3)
    assert loss.huber(large, C).item() == pytest.approx(2 * 0.4 * 1e4, rel=1e-3)
    assert loss.smooth_l1(small, C).item() == pytest.approx(1e-8 / 0.4, rel=1e-3)
    assert loss.smooth_l1(large, C).item() == pytest.approx(2e4, rel=1e-3)
    assert np.allclose(loss.huber(D, C), 0.8 * (np.sqrt(D.numpy() ** 2 + 0.16) - 0.4))


def test_widths_follow_their_schedules():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert loss.huber_width(t, 0.1).tolist() == pytest.approx([0.1] * 3)
    # SimpleTuner writes exp(-t (-ln c / 1000)) for t in 0..1000
    assert loss.huber_width(t, 0.1, "exponential").tolist() == pytest.approx([1.0, math.sqrt(0.1), 0.1])
    snr = [0.9 / (1 + math.sqrt((1 - x) / (x + 1e-4))) ** 2 + 0.1 for x in (0.0, 0.5, 1.0)]
    assert loss.huber_width(t, 0.1, "snr").tolist() == pytest.approx(snr)


def test_the_width_belongs_to_its_sample():
    widths = torch.tensor([0.1, 2.0], dtype=torch.float64)
    both = loss.huber(error(), widths)
    for i in (0, 1):
        assert torch.equal(both[i : i + 1], loss.huber(error()[i : i + 1], widths[i : i + 1]))


def haar(d):
    """The orthonormal Haar transform of the two last axes as a matrix product: (rows of smooth, rows of detail)."""

    def matrix(n):
        m = np.zeros((n, n))
        for i in range(n // 2):
            m[i, 2 * i : 2 * i + 2] = 2**-0.5, 2**-0.5
            m[n // 2 + i, 2 * i : 2 * i + 2] = 2**-0.5, -(2**-0.5)
        return m

    return matrix(d.shape[-2]) @ d @ matrix(d.shape[-1]).T


@pytest.mark.parametrize("detail", [0.0, 1.0, 2.5])
def test_wavelet_weighs_the_bands_of_the_haar_transform(detail):
    d = error()
    bands = haar(d.numpy()) ** 2
    weights = np.full(bands.shape[-2:], detail)
    weights[:2, :3] = 1
    ours = loss.wavelet(d, detail)
    assert ours.shape == d.shape
    assert ours.mean((1, 2, 3)).numpy() == pytest.approx((bands * weights).mean((1, 2, 3)))


def test_wavelet_without_emphasis_is_the_mean_square_also_at_odd_sizes():
    for shape in ((2, 3, 4, 6), (1, 2, 5, 3), (1, 1, 1, 1), (1, 2, 4, 5), (1, 2, 5, 4)):
        d = error(shape)
        assert loss.wavelet(d, 1.0).mean().item() == pytest.approx(d.square().mean().item())
    assert loss.wavelet(error(), 2.0).mean().item() != pytest.approx(error().square().mean().item(), rel=0.05)


def test_clamping_stops_the_gradient_of_a_sample_at_its_limit():
    losses = torch.tensor([0.1, 0.5, 2.0], requires_grad=True)
    clamped = loss.clamped(losses, 0.2, 1.0)
    assert clamped.tolist() == pytest.approx([0.2, 0.5, 1.0])
    clamped.sum().backward()
    assert losses.grad.tolist() == [0, 1, 0]
    assert loss.clamped(losses) is losses
    assert loss.clamped(losses, most=1.0).tolist() == pytest.approx([0.1, 0.5, 1.0])


def test_differential_guidance_multiplies_the_square_by_s2_and_its_gradient_by_s():
    target = error(seed=1)
    for kind, loss_gain, gradient_gain in ((loss.squared, 9.0, 3.0), (loss.absolute, 3.0, 1.0)):
        values, gradients = [], []
        for scale in (1.0, 3.0):
            prediction = error().requires_grad_()
            value = kind(prediction - differential_target(prediction, target, scale)).mean()
            value.backward()
            values.append(value.item())
            gradients.append(prediction.grad)
        assert values[1] == pytest.approx(loss_gain * values[0])
        assert torch.allclose(gradients[1], gradient_gain * gradients[0], rtol=1e-12)


def test_contrastive_target_and_its_schedule():
    target, u = error(), error(seed=2)
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert guidance.scale_at(t, 3.0).tolist() == [3, 3]
    assert guidance.scale_at(t, 3.0, "sigma").tolist() == [1.5, 3]
    scale = guidance.scale_at(t, 3.0, "sigma")
    found = guidance.contrastive_target(target, u, scale)
    for i, g in enumerate((1.5, 3.0)):
        assert np.allclose(found[i], u[i].numpy() + g * (target[i].numpy() - u[i].numpy()))
    assert torch.allclose(guidance.contrastive_target(target, u, torch.ones(2)), target)


def test_projection_leaves_a_remainder_that_is_orthogonal():
    target, u = error(), error(seed=2)
    base = guidance.contrastive_target(target, u, torch.zeros(2), project=True)  # g = 0 leaves a u
    assert ((target - base) * u).flatten(1).sum(1).tolist() == pytest.approx([0, 0], abs=1e-9)


def test_guided_prediction_sends_gradients_to_both():
    c, u = error().requires_grad_(), error(seed=2).requires_grad_()
    mixed = guidance.guided(c, u, 4.0)
    assert np.allclose(mixed.detach(), -3 * u.detach().numpy() + 4 * c.detach().numpy())
    mixed.sum().backward()
    assert (c.grad == 4).all() and (u.grad == -3).all()


def test_outside_is_what_a_mask_leaves_dark():
    mask = torch.tensor([[2.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)  # 1, 1/2, 0, 1/2 before it was normalised
    found = outside([mask, None, torch.ones(1, 1, 2, 2)], torch.zeros(3, 5, 2, 2))
    assert found[0].flatten().tolist() == pytest.approx([0, 1, 2, 1])
    assert not found[1:].any()


def test_embedded_guidance_is_drawn_per_sample():
    generator = torch.Generator().manual_seed(0)
    assert guidance.embedded(3, 1.0, 1.0, generator) == [1.0] * 3
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())  # constant draws nothing
    drawn = guidance.embedded(4000, 1.0, 5.0, generator)
    assert 1 <= min(drawn) < 1.02 and 4.98 < max(drawn) <= 5
    assert np.mean(drawn) == pytest.approx(3, abs=0.06)
