"""Runs of the tiny FLUX.2 that are interrupted and taken up again, for the tests of both."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from support import brief_flux2, tiny_caches

from flux2_train import events
from flux2_train.runs import resume
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.base import choices
from flux2_train.settings.objective import GuidanceSettings, PreservationSettings
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import packing

STEPS, CUT = 5, 2
CONFIG = TrainingSettings(name="run", steps=STEPS, rank=2, learning_rate=2e-3, validation_items=0, checkpointing=False)
SCHEDULES = choices(OptimizerSettings, "schedule")
EVERY = {
    "adamw": {},
    "prodigy": {"optimizer": OptimizerSettings("prodigy"), "learning_rate": 1.0},
    "lion": {"optimizer": OptimizerSettings("lion")},
    "adafactor": {"optimizer": OptimizerSettings("adafactor")},
    "schedulefree": {"optimizer": OptimizerSettings("schedulefree", warmup=2)},
    **{name: {"optimizer": OptimizerSettings(schedule=name, warmup=2)} for name in SCHEDULES},
    "ema": {"ema": EmaSettings(ema_decay=0.9, ema_warmup=2)},
    "schedulefree with ema": {"optimizer": OptimizerSettings("schedulefree"), "ema": EmaSettings(ema_decay=0.9)},
    "dora": {"adapter": AdapterSettings(dora=True)},
    "lokr": {"adapter": AdapterSettings(kind="lokr", lokr_decompose_both=True)},
    "loha": {"adapter": AdapterSettings(kind="loha")},
    "dropout": {"adapter": AdapterSettings(dropout=0.3)},
    "lora plus": {"adapter": AdapterSettings(lora_plus=4)},
    "strata": {"timesteps": TimestepSettings(strata=4)},
    "round robin": {"timesteps": TimestepSettings(distribution="round robin", values=(0.2, 0.5, 0.9))},
    "drawn guidance": {"guidance": GuidanceSettings(guidance_max=4.0)},
    "preservation": {"preservation": 1.0, "preservation_options": PreservationSettings(every=2)},
    "batch and accumulate": {"batch": 2, "accumulate": 2},
}


class Stop(BaseException):
    """What a listener raises, as ComfyUI's interrupt does."""


@pytest.fixture(scope="module")
def caches():
    return tiny_caches()


@pytest.fixture(scope="module")
def model():
    return brief_flux2()


@pytest.fixture
def trainer(model, caches):
    """Trainers on one model and data set: ``trainer(steps=4)``."""

    def make(**changes):
        return new_trainer(model, *caches, replace(CONFIG, **changes))

    return make


def steps(trainer, count=None):
    """Run to the end, or to the end of the step with that number."""
    with torch.inference_mode(), closing(trainer.run()) as run:
        for event in run:
            if isinstance(event, events.Completed) and event.step == count:
                break
    return trainer


def assert_same(a, b):
    """Equal to the last bit; of what was measured, all but the seconds."""
    (first, tensors), (second, others) = packing.pack(a), packing.pack(b)
    assert first == second
    assert tensors.keys() == others.keys()
    for name in tensors.keys() - {"history.seconds"}:
        assert tensors[name].dtype == others[name].dtype and torch.equal(tensors[name], others[name]), name


class Listener:
    """Notes what it is told, and raises after the step with that number."""

    def __init__(self, at=None, error=Stop):
        self.at, self.error, self.received, self.recorded = at, error, [], []

    def __call__(self, event):
        told_twice = isinstance(event, events.Recorded)  # repeats the others for the browser
        (self.recorded if told_twice else self.received).append(event)
        if isinstance(event, events.Stepped) and event.step == self.at:
            raise self.error

    def of(self, kind):
        return [event for event in (*self.received, *self.recorded) if isinstance(event, kind)]


def session(trainer, place, listener=None, how=resume.AUTO):
    with torch.inference_mode():
        return train(trainer, place / "loras", place / "runs", listener or Listener(), how)


def interrupted(trainer, place, at=CUT, **changes):
    with pytest.raises(Stop):
        session(trainer(**changes), place, Listener(at))
    return RunFolder(place / "runs" / "run")
