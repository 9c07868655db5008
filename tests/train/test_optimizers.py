"""Optimizers' first steps and the learning rate's course against closed forms; what is missing is refused by name."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from flux2_train.errors import UserError
from flux2_train.settings.optimizer import OptimizerSettings
from flux2_train.train import optimizers
from flux2_train.train.schedules import Schedule, factor

LR, WD = 0.01, 0.1


def parameter():
    return torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))


def step(config, learning_rate=LR, steps=1):
    """The parameter before and after steps on one gradient, that gradient and the optimizer."""
    p = parameter()
    before = p.detach().clone().numpy()
    optimizer = optimizers.build(config, [{"params": [p], "lr": learning_rate}])
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    if hasattr(optimizer, "train"):
        optimizer.train()
    for number in range(steps):
        p.grad = gradient * (1 + number % 3)  # of one sign, not of one size
        optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return before, p.detach().numpy(), gradient.numpy(), optimizer


def factored(g):
    """Adafactor's first update: the second moment as an outer product of row and column means, clipped to RMS 1."""
    square = g**2 + 1e-30
    u = g / np.sqrt(np.outer(square.mean(1), square.mean(0)) / square.mean())
    return u / max(1.0, np.sqrt((u**2).mean()))


@pytest.mark.parametrize("name, update", [("adamw", np.sign), ("lion", np.sign), ("adafactor", factored)])
def test_first_steps_equal_their_closed_form(name, update):
    before, after, g, _ = step(OptimizerSettings(optimizer=name, weight_decay=WD))
    assert np.allclose(after, before * (1 - LR * WD) - LR * update(g), atol=2e-6)
    assert np.abs(after - before).max() > LR / 2


def test_schedule_free_averages_its_steps():
    # x_1 = z_1; x_2 = (z_1 + z_2) / 2, the second gradient being twice the first
    config = OptimizerSettings(optimizer="schedulefree", weight_decay=0.0)
    before, once, g, _ = step(config)
    assert np.allclose(once, before - LR * np.sign(g), atol=1e-5)
    _, twice, _, _ = step(config, steps=2)
    second = 2 / math.sqrt((0.999 + 4) / (0.999 + 1))
    assert np.allclose(twice, before - (1 + second / 2) * LR * np.sign(g), atol=1e-5)


def test_prodigy_finds_its_rate():
    config = OptimizerSettings(optimizer="prodigy", weight_decay=0.0)
    before, after, g, optimizer = step(config, learning_rate=1.0)
    rate = optimizer.param_groups[0]["d"]
    assert np.allclose(after, before - rate * np.sign(g), atol=2e-6)
    _, _, _, later = step(config, learning_rate=1.0, steps=60)
    assert later.param_groups[0]["d"] > 100 * rate


@pytest.mark.parametrize("change", [{"betas": (0.5, 0.6)}, {"eps": 0.1}, {"weight_decay": 0.0}], ids=str)
@pytest.mark.parametrize("name", ["adamw", "prodigy", "schedulefree"])
def test_moments_and_decay_act(name, change):
    config, rate = OptimizerSettings(optimizer=name, weight_decay=WD), 1.0 if name == "prodigy" else LR
    before, plain, _, _ = step(config, rate, steps=40)
    _, changed, _, _ = step(replace(config, **change), rate, steps=40)
    assert np.linalg.norm(changed - plain) > 1e-4 * np.linalg.norm(plain - before)


def test_betas_act_in_lion():
    p, moved = parameter(), []
    for betas in ((0.0, 0.0), (0.9, 0.9)):
        optimizer = optimizers.build(OptimizerSettings(optimizer="lion", weight_decay=0.0, betas=betas),
                                     [{"params": [p], "lr": LR}])  # fmt: skip
        for gradient in (1.0, -0.5):
            before = p.detach().clone()
            p.grad = torch.full_like(p, gradient)
            optimizer.step()
        moved.append((p.detach() - before).sign().unique().item())
    assert moved == [1, -1]  # the last gradient alone, and the mean that still remembers the first


def test_8_bit_is_refused_without_its_device_or_library():
    with pytest.raises(UserError, match="adamw8bit needs (bitsandbytes, which|a CUDA device, but this run is on cpu)"):
        step(OptimizerSettings(optimizer="adamw8bit"))


@pytest.mark.parametrize("name, module, package", [
    ("lion", "lion_pytorch", "lion-pytorch"), ("prodigy", "prodigyopt", "prodigyopt"),
    ("schedulefree", "schedulefree", "schedulefree"), ("adamw8bit", "bitsandbytes", "bitsandbytes"),
])  # fmt: skip
def test_a_missing_library_is_named_with_how_to_install_it(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)  # what Python itself does where an import is not to be had
    with pytest.raises(UserError, match=f"The optimizer {name} needs {package}.*pip install {package}"):
        step(OptimizerSettings(optimizer=name), learning_rate=1.0)


def test_prodigy_refuses_a_small_rate_and_several():
    with pytest.raises(UserError, match=r"multiplies it by yours, which is 0\.0001; set it to 1"):
        step(OptimizerSettings(optimizer="prodigy"), learning_rate=1e-4)
    groups = [{"params": [parameter()], "lr": lr} for lr in (1.0, 2.0)]
    with pytest.raises(UserError, match="one learning rate for all layers, but there are 2"):
        optimizers.build(OptimizerSettings(optimizer="prodigy"), groups)


def test_block_rates_split_groups_by_layer():
    a, b, c = parameter(), parameter(), parameter()
    names = {a: "double_blocks.0.img_attn.qkv", b: "single_blocks.1.linear1", c: "double_blocks.1.txt_mlp.0"}
    groups = [{"params": [a, b], "lr": 1.0}, {"params": [c], "lr": 16.0, "weight_decay": 0.3}]
    split = optimizers.by_block(groups, names, (("single_blocks.*", 0.5), ("double_blocks.1.*", 0.1)))
    found = {names[p]: (g["lr"], g.get("weight_decay")) for g in split for p in g["params"]}
    assert found == {names[a]: (1.0, None), names[b]: (0.5, None), names[c]: (1.6, 0.3)}
    assert optimizers.by_block(groups, names, ()) is groups
    with pytest.raises(UserError, match="fits no layer; layers are named like double_blocks.0.img_attn.qkv"):
        optimizers.by_block(groups, names, (("blocks_of_nothing", 1.0),))


def rates(total=40, **options):
    config = OptimizerSettings(**options)
    optimizer = torch.optim.SGD([parameter()], lr=2.0)
    schedule = Schedule(optimizer, total, config)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("schedule, closed", [
    ("constant", lambda p: 1), ("linear", lambda p: 1 - p), ("cosine", lambda p: math.cos(math.pi * p / 2) ** 2),
    ("polynomial", lambda p: (1 - p) ** 3), ("rex", lambda p: (1 - p) / (0.5 + 0.5 * (1 - p))),
    ("cosine with restarts", lambda p: math.cos(math.pi * (2 * p % 1) / 2) ** 2),
])  # fmt: skip
def test_schedules_equal_their_closed_form(schedule, closed):
    found = rates(schedule=schedule, power=3.0, cycles=2)
    assert found == pytest.approx([closed(i / 40) for i in range(40)])
    ends = rates(schedule=schedule, power=3.0, cycles=2, end=0.1)
    if schedule != "constant":
        assert ends == pytest.approx([0.1 + 0.9 * f for f in found])


@pytest.mark.parametrize(
    "ours, theirs", [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_schedules_are_the_fields(ours, theirs):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    reference = get_scheduler(theirs, optimizer, num_warmup_steps=8, num_training_steps=40)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    found = rates(schedule=ours, warmup=8)
    assert found[8:] == pytest.approx(expected[8:])
    assert found[:7] == pytest.approx(expected[1:8])  # theirs wastes its first step at rate 0
    assert found[7] == 1


def test_warm_up_in_steps_or_as_a_part():
    assert rates(warmup=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates(warmup=0.1) == rates(warmup=4)
    assert rates(warmup=0)[0] == 1


@pytest.mark.parametrize("options", [{"schedule": "cosine", "warmup": 5}, {"schedule": "rex", "end": 0.1}, {}], ids=str)
def test_every_groups_rate_is_to_the_bit_that_of_torchs_scheduler(options):
    config, groups = OptimizerSettings(**options), [{"params": [parameter()], "lr": rate} for rate in (1e-4, 0.3, 16.0)]
    ours, theirs = (torch.optim.SGD([dict(group) for group in groups]) for _ in range(2))
    schedule = Schedule(ours, 40, config)
    reference = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: factor(step, 40, config))
    for _ in range(40):
        assert [group["lr"] for group in ours.param_groups] == [group["lr"] for group in theirs.param_groups]
        theirs.step()
        reference.step()
        schedule.step()


def test_a_schedule_goes_on_from_a_state_that_torchs_scheduler_left_in_the_optimizer():
    """Checkpoints of older versions hold ``initial_lr`` in each group; the rates are the new run's."""
    config = OptimizerSettings(schedule="linear", warmup=0)
    old = torch.optim.SGD([parameter()], lr=7.0)
    reference = torch.optim.lr_scheduler.LambdaLR(old, lambda step: factor(step, 40, config))
    for _ in range(10):
        old.step()
        reference.step()
    new = torch.optim.SGD([parameter()], lr=2.0)
    schedule = Schedule(new, 80, config)
    new.load_state_dict(old.state_dict())
    assert "initial_lr" in new.param_groups[0]
    schedule.go_to(10)
    assert new.param_groups[0]["lr"] == 2.0 * (1 - 10 / 80)
    schedule.step()
    assert new.param_groups[0]["lr"] == 2.0 * (1 - 11 / 80) and schedule.done == 11
