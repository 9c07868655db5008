"""Training where the device computes in fp16: bf16 where it can, else a scaled loss whose gradients do not vanish."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from support import adapters_for, brief_flux2, problem, tiny_caches

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.host.borrowed.compute import training_dtype
from flux2_train.host.borrowed.velocity import Condition, velocity
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.results import report
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.loss_scale import GROW_AFTER, PATIENCE, LossScale

CONFIG = TrainingSettings(steps=3, rank=2, learning_rate=1e-3, validation_items=0, checkpointing=False)


def in_fp16(model):
    """The MODEL as ComfyUI sets it up on a card that computes in fp16."""
    model.model.manual_cast_dtype = torch.float16
    return model


def gradients(dtype, scale):
    """Gradients of a mean over the 2304 tokens of an image of 768 px, by parameter, in fp32."""
    model = brief_flux2()
    adapters = adapters_for(model)
    model.model.manual_cast_dtype = dtype
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(1, 128, 48, 48, generator=generator) for _ in range(2))
    text = torch.randn(1, 7, 96, generator=generator)
    with torch.inference_mode(), borrow(model, adapters.deltas(), False) as borrowed, training_mode():
        v = velocity(borrowed, x.clone(), torch.tensor([0.5]), [Condition(text.clone())])
        (scale * (v - target.clone()).square().mean()).backward()
    scaling = LossScale(True)
    scaling.scale = scale
    scaling.down(adapters.trainable())
    return adapters.masters()


def worst(found, expected):
    """The largest relative error by norm over the parameters."""
    return max(((found[n].grad - p.grad).norm() / p.grad.norm()).item() for n, p in expected.items())


@pytest.fixture(scope="module")
def exact():
    return gradients(torch.float32, 1.0)


@pytest.mark.long
def test_fp16_without_a_scale_loses_gradients_and_with_one_it_does_not(exact):
    """11 bits of mantissa, rounded in some ten layers one after the other: 1e-2 at most."""
    assert worst(gradients(torch.float16, 1.0), exact) > 0.2
    assert worst(gradients(torch.float16, 2.0**16), exact) < 0.01


def test_bf16_is_chosen_where_the_device_has_it(monkeypatch):
    model = in_fp16(brief_flux2())
    assert training_dtype(model) == torch.float16
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: True)
    assert training_dtype(model) == torch.bfloat16
    for other in (torch.float32, torch.bfloat16):
        model.model.manual_cast_dtype = other
        assert training_dtype(model) == other


def dtypes(model, adapters):
    """The dtype of a block's input in training, and of one in sampling."""
    seen = []
    block = model.model.diffusion_model.double_blocks[0]
    handle = block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["img"].dtype),
                                             with_kwargs=True)  # fmt: skip
    x, t, conditions, _ = problem(1, dtype=torch.float32)
    with torch.inference_mode(), borrow(model, adapters.deltas(), False) as borrowed:
        with training_mode():
            velocity(borrowed, x.clone(), t.clone(), conditions)
        model.model.manual_cast_dtype = None  # whose layers are fp32's, as they were built
        velocity(borrowed, x, t, conditions)
    handle.remove()
    return seen


def test_the_model_trains_in_bf16_and_samples_as_before(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: True)
    model = in_fp16(brief_flux2())
    assert dtypes(model, adapters_for(model)) == [torch.bfloat16, torch.float32]
    assert model.model.manual_cast_dtype is None


def run(trainer):
    with torch.inference_mode(), closing(trainer.run()) as events_of:
        return list(events_of)


def warnings(received):
    return [event.text for event in received if isinstance(event, events.Warned)]


@pytest.mark.long
def test_a_run_in_fp16_says_so_and_keeps_its_scale_in_the_checkpoint():
    trainer = new_trainer(in_fp16(brief_flux2()), *tiny_caches(), CONFIG)
    received = run(trainer)
    assert "computes in  fp16, with loss scaling" in next(e.text for e in received if isinstance(e, events.Planned))
    saved = SimpleNamespace(path=Path("x.safetensors"), certificate="", note="")
    assert "computes in  fp16, with loss scaling" in report(trainer, trainer.dataset, saved)["plan"]
    assert len(trainer.history.losses) == 3 and not warnings(received)
    trainer.loss_scale.scale /= 4
    other = new_trainer(in_fp16(brief_flux2()), *tiny_caches(), CONFIG)
    with torch.inference_mode():
        other.load_state_dict(trainer.state_dict())
    assert other.loss_scale.state_dict() == trainer.loss_scale.state_dict()


def test_a_run_in_fp32_is_not_scaled():
    trainer = new_trainer(brief_flux2(), *tiny_caches(), CONFIG)
    assert "computes in  fp32" in trainer.memory.describe().splitlines()
    loss = torch.tensor(3.0)
    assert not trainer.loss_scale.on and trainer.loss_scale.up(loss) is loss


def test_a_checkpoint_without_a_scale_is_read():
    trainer = new_trainer(brief_flux2(), *tiny_caches(), CONFIG)
    state = trainer.state_dict()
    del state["guards"]["loss_scale"]
    with torch.inference_mode():
        trainer.load_state_dict(state)


@pytest.mark.long
def test_gradients_that_overflow_halve_the_scale_and_leave_the_update_out():
    trainer = new_trainer(in_fp16(brief_flux2()), *tiny_caches(), CONFIG)
    trainer.loss_scale.scale = 2.0**31
    before = {name: p.detach().clone() for name, p in trainer.adapters.masters().items()}
    received = run(trainer)
    left_out = warnings(received)
    assert "Step 1 was left out: its gradients were too large for fp16; the loss scale is 1.07374e+09 now." in left_out
    assert trainer.loss_scale.scale == 2.0 ** (31 - len(left_out))
    if len(left_out) == CONFIG.steps:
        assert all(torch.equal(p, before[name]) for name, p in trainer.adapters.masters().items())
    assert all(torch.isfinite(p).all() for p in trainer.adapters.trainable())


@pytest.mark.long
def test_after_ten_halvings_in_a_row_the_rule_for_bad_losses_holds(monkeypatch):
    config = replace(CONFIG, steps=40)
    trainer = new_trainer(in_fp16(brief_flux2()), *tiny_caches(), config)
    monkeypatch.setattr(trainer.loss_scale, "down", lambda parameters: [p.grad.fill_(torch.inf) for p in parameters])
    with pytest.raises(UserError, match=f"The loss is nan after 0 steps, {config.guard.bad_losses} times in a row"):
        run(trainer)
    assert trainer.step == PATIENCE + config.guard.bad_losses - 1


def test_the_scale_grows_again():
    scale = LossScale(True)
    first = scale.scale
    assert scale.overflowed(False) and scale.scale == first / 2
    assert not any(scale.overflowed(True) for _ in range(GROW_AFTER)) and scale.scale == first
