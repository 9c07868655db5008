"""Which layers may be multiplied in 8 bits: bounds, the order in which layers are given back, and the gain."""

import math

import pytest
import torch

from flux2_train.planning.certifying import (
    FEWEST,
    LAYER_COSINE,
    LAYER_ERROR,
    Agreement,
    Choice,
    gain,
    within_bounds,
    without_worst,
    worst_of,
)


def test_agreement_is_relative_error_and_cosine():
    g = torch.Generator().manual_seed(0)
    exact = torch.randn(1000, generator=g, dtype=torch.float64)
    other = 1.1 * exact + 0.2 * torch.randn(1000, generator=g, dtype=torch.float64)
    found = Agreement.of(*((v.norm().item()) for v in (other - exact, exact, other)))
    assert found.error == pytest.approx(((other - exact).norm() / exact.norm()).item())
    assert found.cosine == pytest.approx(torch.cosine_similarity(exact, other, dim=0).item())
    assert Agreement.of(0, 0, 0) == Agreement(0, 1) and Agreement.of(1, 0, 1) == Agreement(math.inf, 0)


def test_both_bounds_hold():
    layers = {
        "good": Agreement(0.01, 0.9999), "best": Agreement(0.001, 1), "wide": Agreement(1.01 * LAYER_ERROR, 1),
        "turned": Agreement(0.01, LAYER_COSINE - 1e-6), "broken": Agreement(math.nan, math.nan),
    }  # fmt: skip
    assert within_bounds(layers) == ["best", "good"]


def test_the_worst_are_given_back_until_too_few_are_left():
    chosen = [f"layer {number}" for number in range(8)]
    assert without_worst(chosen, 8) == chosen[:6] and without_worst(chosen[:6], 8) == chosen[:4]
    assert without_worst(chosen[:1], 8) == [] and without_worst(chosen[:2], 8) == []
    assert FEWEST * 8 <= 2 and without_worst(chosen[:3], 8) == chosen[:2]


def test_of_several_processes_the_worst_counts():
    found = worst_of([{"a": Agreement(0.1, 0.9), "b": Agreement(0, 1)}, {"a": Agreement(math.nan, 0.0)}])
    assert found == {"a": Agreement(math.inf, 0.0), "b": Agreement(0, 1)}
    assert Agreement.worst([Agreement(0.1, 0.9), Agreement(0.2, 0.95)]) == Agreement(0.2, 0.9)


def test_a_choice_keeps_all_it_was_made_of():
    choice = Choice(("a", "b"), "bf16", Agreement(0.03, 0.9995), 1.4)
    assert Choice.of_state(choice.state_dict()) == choice
    none = Choice((), "int8", why="8 bits are slower")
    assert Choice.of_state(none.state_dict()) == none
    assert gain([4.0, 2.0, 8.0], [2.0, 9.0, 1.0]) == 2
