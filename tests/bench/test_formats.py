"""bench.speed.formats: its formats are those of the engine and of torch, and its shortest form measures them all."""

import json
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from support import adapters_for, brief_flux2, loss_of, problem

from bench.speed.formats import FORMATS, OWN, Format, e4m3, main, of_all, of_rows, plant
from flux2_train.host.borrowed import int8
from flux2_train.host.borrowed.borrow import borrow, training_mode


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def products(functions):
    """Of tokens and gradients with a weight whose output channels differ in size."""
    weight = functions.quantised(drawn(96, 64, seed=0) * torch.logspace(-2, 0, 96)[:, None])
    return functions.product(drawn(50, 64, seed=1), weight), functions.transposed_product(drawn(50, 96, seed=2), weight)


def test_numbers_that_are_kept_in_fp32_give_the_engines_products(monkeypatch):
    """Those that the engine gives where it rotates nothing."""
    monkeypatch.setattr(int8, "group_of", lambda width: 0)
    for found, expected in zip(products(Format(torch.round, 127, of_rows, of_rows)), products(int8), strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_fp8_has_three_bits_behind_the_first():
    assert e4m3(torch.tensor([448.0, 449.0, 17.0, 19.0, -1.06, 0.0])).tolist() == [448, 448, 16, 20, -1, 0]
    values, scales = Format(e4m3, 448, of_all, of_rows)._numbers(torch.tensor([[2.0, -4.0], [0.0, 0.0]]), of_rows)
    assert values.tolist() == [[224, -448], [0, 0]] and scales[0] == 4 / 448


def test_formats_differ_and_the_first_is_the_engines():
    found = []
    for functions in FORMATS.values():
        with patch.multiple(int8, **functions):
            weight = int8.quantised(drawn(96, 256, seed=0) * torch.logspace(-2, 0, 96)[:, None])
            found.append(int8.product(drawn(50, 256, seed=1), weight))
    assert torch.equal(found[0], int8.product(drawn(50, 256, seed=1), int8.quantised(
        drawn(96, 256, seed=0) * torch.logspace(-2, 0, 96)[:, None])))  # fmt: skip
    assert not any(torch.equal(one, other) for number, one in enumerate(found) for other in found[:number])


def test_planted_outliers_change_no_bit_of_what_the_model_computes():
    model, found = brief_flux2(), []
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    adapters.enabled = False  # a LoRA's products would grow with the outliers
    for _ in range(2):
        with borrow(model, adapters.deltas()) as borrowed, training_mode(), torch.no_grad():
            found.append(loss_of(borrowed, case))
        with torch.inference_mode():
            plant(model, 32)
    assert torch.equal(*found)


@pytest.mark.long
def test_the_shortest_form_measures_every_format(tmp_path, capsys):
    main(["--outliers", "32", "--batches", "1", "--out", str(tmp_path / "formats.json")])
    found = json.loads((tmp_path / "formats.json").read_text())["outliers"]["32"]
    steps = {name: step for name, (step,) in found.items()}
    assert list(steps) == list(FORMATS)
    for step in steps.values():
        assert 0 < step["outputs"] <= step["worst outputs"] and 0.5 < step["cosine"] < 1
        assert 0 < step["input gradients"] <= step["worst input gradients"] and 0 < step["layers"] <= step["of"]
        assert 0 < step["certified"] <= step["adapters"] < 1
    best_first = OWN, "the same, not rotated", "int8, scales of tokens and the whole weight"
    for one, other in pairwise(steps[name] for name in best_first):
        assert one["outputs"] < other["outputs"] and one["adapters"] < other["adapters"]
    assert capsys.readouterr().out.count(f"| {OWN} | ") == 1
