"""How often the processor waits for the device in a step: on a device that tells it, see test_other_device.py."""

import os
from contextlib import closing
from dataclasses import replace

import other_device
import pytest
import torch
from support import brief_flux2, same, state_dict, tiny_caches
from test_objective_data import masked_caches

from flux2_train.host.system import compiler, rates
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.objective import GuidanceSettings, PreservationSettings
from flux2_train.settings.optimizer import EmaSettings
from flux2_train.settings.routing import RoutingSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.streaming import uploads

pytestmark = pytest.mark.skipif(os.environ.get("FLUX2_DEVICE") != "other", reason="run by test_other_device.py")
SHORT = TrainingSettings(name="short", steps=2, rank=2, learning_rate=2e-3, validation_items=0)
EACH = {"preservation": 1.0, "preservation_options": PreservationSettings(every=1)}
# By what is tried: the run's settings, and what of its samples is changed.
CASES = {
    "nothing": ({}, ()),
    "batch and accumulate": ({"batch": 2, "accumulate": 2}, ()),
    "preservation": (EACH, ("is_reg",)),
    "outside of masks": ({"preservation_options": PreservationSettings(outside_mask=1.0)}, ()),
    "references and the base's target": ({}, ("references", "base_target")),
    "contrastive guidance": ({"guidance": GuidanceSettings(contrastive_guidance=2.0)}, ()),
    "moving average": ({"ema": EmaSettings(ema_decay=0.9)}, ()),
    "routed": ({"routing": RoutingSettings(0.5, 0, -1, until=100.0)}, ()),
    "dora, dropout": ({"adapter": AdapterSettings(dora=True, dropout=0.3)}, ()),
    "streamed": ({"memory": MemorySettings(blocks_to_swap=2)}, ()),
    "lokr": ({"adapter": AdapterSettings(kind="lokr")}, ()),
    "8 bits": ({"speed": "fast"}, ()),
}


@pytest.fixture
def asynchronous(monkeypatch):
    """The device copies while the processor goes on, as a GPU does from pinned memory. Its rates are not measured."""
    monkeypatch.setattr(rates, "_known", {rates.key_of(torch.device("npu:0")): rates.ASSUMED})
    monkeypatch.setattr(uploads, "PINNING", {"npu"})
    monkeypatch.setattr(uploads, "_pinned", torch.clone)


def changed(sample, of_sample):
    given = {"references": (sample.latent.flip(-1),), "is_reg": True, "base_target": True}
    return replace(sample, **{name: given[name] for name in of_sample})


def trained(config, of_sample=(), masked=False):
    """The trainer of a short run, and what the processor waited for in each of its steps."""
    trainer = new_trainer(brief_flux2(), *(masked_caches() if masked else tiny_caches()), config)
    step, found = trainer._step, []

    def told(borrowed, number, batch):
        with other_device.waits() as waits:
            result = step(borrowed, number, [changed(sample, of_sample) for sample in batch])
        found.append([(what, place.partition(":")[0]) for what, _, place in waits])
        return result

    trainer._step = told
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    return trainer, found


@pytest.mark.parametrize("case", CASES)
def test_the_processor_waits_once_in_a_step(asynchronous, case):
    """For what the step has measured; its first steps may also build things."""
    changes, of_sample = CASES[case]
    assert trained(replace(SHORT, **changes), of_sample, "masks" in case)[1][-1] == [("to the host", "history.py")]


@pytest.mark.slow
def test_with_compiled_blocks_it_waits_once_too(asynchronous, monkeypatch):
    monkeypatch.setattr(compiler, "BACKEND", "eager")
    trainer, found = trained(replace(SHORT, compile="on"))
    assert trainer.memory.how.ran and found[-1] == [("to the host", "history.py")]


def test_without_pinned_memory_uploads_wait_too_and_the_bits_are_the_same(asynchronous, monkeypatch):
    without, _ = trained(SHORT)

    def fails(tensor):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(uploads, "_pinned", fails)
    plain, found = trained(SHORT)
    assert found[-1] == [("to the device", "uploads.py")] * 4 + [("to the host", "history.py")]
    assert same(*(state_dict(trainer.adapters, torch.float32) for trainer in (plain, without)))


def test_the_device_tells_what_the_processor_waits_for():
    there, silent = torch.arange(3.0, device="npu"), torch.ones(3)
    with other_device.waits() as found:
        there.sum().item(), there.cpu(), silent.to("npu"), there[there > 1], there.nonzero(), torch.equal(there, there)
        bool(there[0]), there[torch.tensor([0, 1], device="npu")] + 1, silent.to("npu", non_blocking=True)
    names = [what for what, _, place in found if place.startswith("test_one_wait.py")]
    assert names == ["aten::_local_scalar_dense", "to the host", "to the device", "aten::nonzero", "aten::nonzero",
                     "aten::equal", "aten::_local_scalar_dense", "to the device"]  # fmt: skip
