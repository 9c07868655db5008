"""Training times and their weights against scipy's distributions, closed forms and quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from flux2_train.flow import times
from flux2_train.flow.times import constant_mu, empirical_mu, linear_mu, offset, shift
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.train import timesteps

U = torch.linspace(0, 1, 1003, dtype=torch.float64)[1:-1]


def draws(count=20000, seed=0):
    return times.independent(count, torch.Generator().manual_seed(seed))


def ks(t, cdf):
    """Kolmogorov-Smirnov's p-value of times against a distribution function."""
    return stats.kstest(t.numpy(), cdf).pvalue


def logit_normal_cdf(mean, std):
    return lambda t: stats.norm.cdf((np.log(t) - np.log1p(-t)) / std, mean / std)


@pytest.mark.parametrize("quantile, cdf", [
    (times.uniform, stats.uniform.cdf),
    (times.logit_normal, logit_normal_cdf(0, 1)),
    (lambda u: times.logit_normal(u, 2.0, 0.3, 0.7), logit_normal_cdf(0.6, 1.4)),
    (times.beta, stats.beta(2, 2).cdf),
    (lambda u: times.beta(u, 0.7, 3.0), stats.beta(0.7, 3.0).cdf),
], ids=["uniform", "sigmoid", "sigmoid wide", "beta", "beta skewed"])  # fmt: skip
def test_draws_follow_the_distribution(quantile, cdf):
    t = quantile(draws())
    assert ks(t, cdf) > 0.01
    assert ks(t**1.1, cdf) < 1e-6  # the test tells a tenth from nothing
    assert np.allclose(cdf(quantile(U).numpy()), U.numpy(), atol=1e-9)


@pytest.mark.parametrize("scale", [1.29, 0.0, -0.8, 1.7])
def test_mode_is_the_published_function_of_a_uniform(scale):
    u = np.random.default_rng(0).random(20000)
    published = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    ours = times.mode(draws(), scale)
    assert stats.ks_2samp(ours.numpy(), published).pvalue > 0.01
    assert (times.mode(U, scale).diff() > 0).all() and ours.min() > 0 and ours.max() < 1


@pytest.mark.long
def test_a_drawn_density_has_the_published_values():
    # density 2 t: distribution function t^2, mean 2/3
    assert times.density(U, (0, 1)).numpy() == pytest.approx(np.sqrt(U.numpy()), abs=2e-4)
    t = times.density(draws(200000), (0, 1))
    assert t.mean().item() == pytest.approx(2 / 3, abs=2e-3)
    density, _ = np.histogram(t, bins=20, range=(0, 1), density=True)
    assert density[5] == pytest.approx(0.55, abs=0.05) and density[15] == pytest.approx(1.55, abs=0.05)
    assert shift(t, constant_mu(2.0)).numpy() == pytest.approx((2 * t / (1 + t)).numpy(), rel=1e-12)
    assert np.allclose(times.density(U, (3, 3, 3)), U, atol=1e-9)


def test_a_choice_takes_each_value_as_often():
    counts = torch.bincount((times.choice(draws(), (0.9, 0.3, 0.6)) * 10).round().long(), minlength=10)
    assert counts.nonzero().flatten().tolist() == [3, 6, 9]
    assert stats.chisquare(counts[[3, 6, 9]]).pvalue > 0.01


def test_biases_have_their_means():
    # ai-toolkit's two: mean 3/4 and P(t > 0.9) = 0.1^(1/3) for high noise, mirrored for low
    u = draws(400000)
    high, low = times.biased(u, "high noise"), times.biased(u, "low noise")
    assert (high.mean().item(), low.mean().item()) == pytest.approx((0.75, 0.25), abs=2e-3)
    assert (high > 0.9).double().mean().item() == pytest.approx(0.1 ** (1 / 3), abs=3e-3)
    assert ks(low[:20000], lambda t: t ** (1 / 3)) > 0.01
    assert times.biased(u) is u


@pytest.mark.parametrize("least, most", [(0.2, 0.9), (0.0, 0.5), (0.7, 1.0)])
def test_limits_cut_and_keep_proportions(least, most):
    def quantile(u):
        return shift(times.logit_normal(u), 1.15)

    t = quantile(times.within(draws(), quantile, least, most))
    assert least <= t.min() and t.max() <= most
    whole = quantile(draws(200000, 1))
    kept = whole[(whole >= least) & (whole <= most)]  # rejection, which truncation must equal
    assert stats.ks_2samp(t.numpy(), kept.numpy()).pvalue > 0.01
    u = draws(5)
    assert times.within(u, quantile, 0.0, 1.0) is u


def test_strata_are_visited_once_a_round_and_in_the_same_order_after_a_break():
    u = draws(24)
    whole = times.stratified(u, 0, 8, seed=5)
    rounds = (whole * 8).long().view(3, 8)
    assert all(sorted(r.tolist()) == list(range(8)) for r in rounds)
    assert rounds[0].tolist() != rounds[1].tolist()
    assert torch.equal(whole[10:], times.stratified(u[10:], 10, 8, seed=5))
    assert not torch.equal(whole, times.stratified(u, 0, 8, seed=6))


def test_independent_draws_are_seeded_and_never_zero():
    assert torch.equal(draws(seed=3), draws(seed=3)) and not torch.equal(draws(seed=3), draws(seed=4))
    assert draws().min() > 0 and draws().max() < 1 and draws().dtype == torch.float64


def test_empirical_mu_matches_the_published_table():
    table = {(1024, 4): 2.03, (1024, 20): 1.92, (1024, 28): 1.86, (1024, 50): 1.70, (4096, 4): 2.29, (4096, 20): 2.20,
             (4096, 28): 2.15, (4096, 50): 2.02, (6400, 20): 1.54, (9216, 28): 2.02, (16384, 50): 3.23}  # fmt: skip
    for (tokens, steps), mu in table.items():
        assert empirical_mu(tokens, steps) == pytest.approx(mu, abs=0.006), (tokens, steps)


def test_empirical_mu_is_the_samplers():
    """The shift that training uses is the one that ComfyUI's Flux2Scheduler samples with."""
    from comfy_extras.nodes_flux import compute_empirical_mu

    for tokens in (64, 1024, 4096, 4300, 4301, 9216):
        assert empirical_mu(tokens, 20) == pytest.approx(compute_empirical_mu(tokens, 20), rel=1e-12)


def test_constant_and_linear_shift():
    # SimpleTuner's static 3 and the linear mu at 1024^2: factor 3.158
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert shift(t, constant_mu(3.0)).tolist() == pytest.approx([3 * x / (1 + 2 * x) for x in t.tolist()])
    assert torch.equal(shift(t, constant_mu(1.0)), t)
    assert math.exp(linear_mu(4096)) == pytest.approx(3.158, abs=1e-3)


def test_offset_moves_the_normal_under_the_sigmoid():
    # SimpleTuner: sigmoid(n + offset); per sample
    n = stats.norm.ppf(U.numpy())
    by = torch.full_like(U, 0.8)
    assert offset(times.logit_normal(U), by).numpy() == pytest.approx(1 / (1 + np.exp(-n - 0.8)), rel=1e-9)
    assert torch.equal(offset(torch.tensor([0.3, 0.3]), torch.tensor([0.0, 1.0]))[:1], torch.tensor([0.3]))


@pytest.mark.parametrize("curve, mean", [("none", 1.0), ("cosmap", 1.0), ("bell", 1.0), ("measured", 0.999)])
def test_weight_curves_integrate_to_their_mean(curve, mean):
    found, _ = integrate.quad(lambda t: times.CURVES[curve](torch.tensor([t]).double()).item(), 0.001, 1)
    assert found == pytest.approx(mean, abs=2e-3)


def test_weight_curves_have_their_published_values():
    t = torch.tensor([0.01, 0.25, 0.5, 0.875, 1.0], dtype=torch.float64)
    assert times.sigma_sqrt(t).tolist() == pytest.approx([1e4, 16, 4, 1.306122449, 1])
    assert times.cosmap(t)[2].item() == pytest.approx(4 / math.pi)
    assert times.bell(t)[[2, 4]].tolist() == pytest.approx([1.5796, 0.0], abs=1e-3)
    assert times.measured(t)[[2, 3, 4]].tolist() == pytest.approx([0.925, 1.522, 0.906])
    # maximum 1.523 at 0.876, minimum 0.445 at 0.003 (AI Toolkit's 1000 points)
    grid = torch.linspace(0.001, 1, 1000)
    assert times.measured(grid).max().item() == pytest.approx(1.523, abs=2e-3)
    assert times.measured(grid).min().item() == pytest.approx(0.445, abs=3e-3)


def test_a_table_is_interpolated_and_follows_the_samples_of_a_batch():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert times.table(t, (1.0, 3.0, 0.0)).tolist() == [1.0, 2.0, 3.0, 0.0]
    for curve in times.CURVES.values():
        batch = curve(torch.tensor([0.3, 0.6]))
        assert batch.shape == (2,)
        assert [curve(torch.tensor([x])).item() for x in (0.3, 0.6)] == batch.tolist()


def test_times_are_drawn_as_the_options_say():
    def drawn(tokens=1024, **values):
        generator = torch.Generator().manual_seed(0)
        return timesteps.draw(TimestepSettings(**values), [0.0] * 8000, tokens, 0, 0, generator).double().numpy()

    logit = drawn(distribution="sigmoid")
    assert stats.kstest(np.log(logit / (1 - logit)) - 0.63, "norm").pvalue > 0.01  # linear mu of 1024 tokens
    logit = drawn(shift="empirical", shift_steps=28, tokens=4096)
    assert np.median(np.log(logit / (1 - logit))) == pytest.approx(2.151, abs=0.04)
    assert drawn(min=0.3, max=0.4).min() >= 0.3 and drawn(min=0.3, max=0.4).max() <= 0.4001
    assert drawn(distribution="weighted", bias="high noise").mean() == pytest.approx(0.75, abs=0.01)
    assert set(drawn(distribution="list", values=(1000, 500), min=0.6)) == {1.0}
    robin = timesteps.draw(
        TimestepSettings("round robin", values=(0.9, 0.1, 0.5)), [0] * 4, 64, 5, 0, torch.Generator()
    )
    assert robin.tolist() == pytest.approx([0.5, 0.9, 0.1, 0.5])
    assert drawn(sigmoid_scale=50.0).min() > 0 and drawn(sigmoid_scale=50.0).max() < 1


def test_an_offset_moves_only_its_sample():
    generator = torch.Generator().manual_seed(0)
    base = timesteps.draw(TimestepSettings(), [0.0, 0.0, 0.0], 64, 0, 0, generator)
    moved = timesteps.draw(TimestepSettings(), [0.0, 0.7, 0.0], 64, 0, 0, torch.Generator().manual_seed(0))
    logits = torch.logit(moved.double()) - torch.logit(base.double())
    assert logits.tolist() == pytest.approx([0, 0.7, 0], abs=1e-4)
