"""Which tokens are kept: how many, which always, how evenly, and the ratio over a run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flux2_train.flow.routing import bright, draw_kept, ratio_at


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def none(batch, tokens):
    return torch.zeros(batch, tokens, dtype=torch.bool)


@given(
    st.integers(1, 4), st.integers(1, 40), st.floats(0.05, 1), st.integers(0, 2**31), st.floats(0, 1)
)  # fmt: skip
def test_kept_tokens_are_distinct_ascending_and_hold_the_forced_ones(batch, tokens, ratio, seed, share):
    forced = torch.rand(batch, tokens, generator=generator(seed)) < share
    kept = draw_kept(tokens, ratio, forced, generator(seed))
    assert kept.shape == (batch, max(1, round(ratio * tokens), *forced.sum(1).tolist()))
    assert (kept.diff(dim=1) > 0).all() and kept.min() >= 0 and kept.max() < tokens
    for row, wanted in zip(kept, forced, strict=True):
        assert set(wanted.nonzero().flatten().tolist()) <= set(row.tolist())


def test_every_token_is_kept_as_often_as_any_other_and_each_sample_draws_its_own():
    counts, dice = torch.zeros(16), generator()
    for _ in range(2000):
        kept = draw_kept(16, 0.25, none(2, 16), dice)
        counts += torch.bincount(kept.flatten(), minlength=16)
    assert counts.sum() == 2000 * 2 * 4
    assert (counts / 4000 - 0.25).abs().max() < 0.03  # four standard deviations of 0.0068
    assert not torch.equal(*draw_kept(16, 0.5, none(2, 16), generator()))


@pytest.mark.parametrize("done, ramp, until, expected", [
    (0.0, 0.0, 1.0, 0.5), (0.99, 0.0, 1.0, 0.5), (0.0, 0.2, 1.0, 1.0), (0.1, 0.2, 1.0, 0.75), (0.2, 0.2, 1.0, 0.5),
    (0.8, 0.2, 0.9, 0.5), (0.9, 0.2, 0.9, 1.0), (0.0, 0.0, 0.0, 1.0),
])  # fmt: skip
def test_the_ratio_over_a_run(done, ramp, until, expected):
    assert ratio_at(0.5, done, ramp, until) == pytest.approx(expected)


def test_a_mask_is_bright_above_half_of_its_brightest_place():
    mask = torch.tensor([[0.0, 1.0], [2.0, 0.9]]).view(1, 1, 2, 2)  # of any scale: masks have a mean of 1
    assert bright(mask).tolist() == [False, False, True, False]
    assert bright(10 * mask).tolist() == bright(mask).tolist()
