"""Adapters of other kinds as the nearest plain LoRA, and DoRA by either formula."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from made_parts import PROJ, QKV, SIZES, H, dora, loha, lokr, lora, numbers, parts_of

from flux2_train.adapters import plain
from flux2_train.adapters.dora import change, with_norm
from flux2_train.adapters.parts import LowRank, size_of
from flux2_train.errors import UserError


@pytest.mark.parametrize("make", [lora, loha, lokr])
def test_as_plain_lora_states_its_error(make):
    parts = parts_of(make, [QKV, PROJ])
    deltas = {name: part.delta() for name, part in parts.items()}
    plain_parts, error = plain.as_plain(parts, 5)
    assert all(isinstance(p, LowRank) and len(p.down) <= 5 for p in plain_parts.values())
    missed = sum((plain_parts[n].delta() - d).square().sum() for n, d in deltas.items())
    assert error == pytest.approx((missed / sum(d.square().sum() for d in deltas.values())).sqrt().item(), abs=1e-6)
    best = sum(torch.linalg.svdvals(d)[5:].square().sum() for d in deltas.values())
    assert missed <= 1.02 * best + 1e-6
    assert error < 1e-5 if make in (lora, loha) else error > 0.1
    assert all(size_of(p) == SIZES[n] for n, p in plain_parts.items())


@pytest.mark.parametrize("of_base", [True, False])
def test_dora_by_the_papers_formula_and_by_comfyuis(of_base):
    part, weight = dora(H, 2 * H, of_base), numbers(2 * H, H)
    adapted = weight + 0.5 * part.up @ part.down
    norm = (weight if of_base else adapted).square().sum(1).sqrt()
    expected = part.magnitude[:, None] * adapted / norm[:, None]
    torch.testing.assert_close(weight + change(part, weight), expected)
    other = with_norm({"x": part}, lambda name: nullcontext(weight), not of_base)["x"]
    assert other.of_base != of_base and not torch.equal(other.magnitude, part.magnitude)
    torch.testing.assert_close(weight + change(other, weight), expected)


def test_dora_as_plain_lora_takes_the_weights_into_account():
    part, weight = dora(H, H), numbers(H, H)
    part = replace(part, magnitude=weight.norm(dim=1) * 1.1)
    whole, error = plain.as_plain({PROJ: part}, H, lambda name: nullcontext(weight))
    torch.testing.assert_close(whole[PROJ].delta(), change(part, weight), rtol=1e-3, atol=1e-3)
    assert error < 1e-4 < plain.as_plain({PROJ: part}, 8, lambda name: nullcontext(weight))[1]
    with pytest.raises(UserError, match=f"DoRA at {PROJ} depends on the weights"):
        plain.as_plain({PROJ: part}, 8)
