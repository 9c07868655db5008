"""Rows of the ablation: each remedy is taken away by something, and the step learns the same without it."""

from contextlib import closing

import pytest
import torch
from support import brief_flux2, state_dict, tiny_caches

from bench.gpu.ablation import WITHOUT, without
from bench.gpu.rows import REMEDIES, chosen, rows
from flux2_train.host.borrowed import borrow, frozen, rotation
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.streaming import uploads

pytestmark = pytest.mark.long  # bench is for developers
RECOMPUTED = MemorySettings(recompute="blocks", recompute_every=1)
SHORT = TrainingSettings(name="short", steps=2, rank=2, learning_rate=2e-3, validation_items=0, memory=RECOMPUTED)
# By remedy a function, and whether it runs less often with the remedy, or more often.
CALLED = {
    "lora": ((borrow, "lora_linear"), True), "norms": ((frozen, "fetched"), False),
    "rope": ((rotation, "_has_kernel"), True), "uploads": ((uploads, "_pinned"), True),
    "one-wait": ((torch.Tensor, "cpu"), False), "unread": ((frozen, "in_its_place"), True),
}  # fmt: skip


@pytest.fixture
def counted(monkeypatch):
    """A function that says how often the functions of CALLED run in a short run, and what is learned in it."""
    calls = dict.fromkeys(CALLED, 0)
    monkeypatch.setattr(uploads, "PINNING", {"cpu"})
    for name, ((place, attribute), _) in CALLED.items():
        monkeypatch.setattr(place, attribute, _counting(calls, name, getattr(place, attribute)))

    def run():
        calls.update(dict.fromkeys(calls, 0))
        trainer = new_trainer(brief_flux2(), *tiny_caches(), SHORT)
        with torch.inference_mode(), closing(trainer.run()) as events:
            list(events)
        return dict(calls), state_dict(trainer.adapters, torch.float32)

    return run


def _counting(calls, name, function):
    def call(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    return call


def test_each_remedy_is_taken_away_alone_and_the_same_is_learned(counted):
    assert list(WITHOUT) == REMEDIES == list(CALLED)
    every, learned = counted()
    for name in REMEDIES:
        with without([name]):
            calls, found = counted()
        for other, (_, more) in CALLED.items():
            if other == name:
                assert calls[other] < every[other] if more else calls[other] > every[other], name
        assert all((found[key] - value).norm() <= 1e-4 * value.norm() for key, value in learned.items()), name
    assert counted()[0] == every  # nothing is left of it


def test_rows_add_one_remedy_after_the_other():
    found = chosen(rows("cuda"), ["ablation-klein-9b-*"])
    assert [row.name.removeprefix("ablation-klein-9b-1024-") for row in found] == [
        "plain", *REMEDIES, "compiled", "certified", "fastest", "kept", "compiled-kept"]  # fmt: skip
    assert [len(row.arguments["remedies"]) for row in found] == [0, 1, 2, 3, 4, 5, *[6] * 6]
    given = ("flavour", "pixels", "precision", "remedies")
    assert [{k: v for k, v in row.arguments.items() if k not in given} for row in found] == [
        *[{}] * 7, {"compile": "on"}, {"speed": "certified"}, {"attention": "fastest"}, {"recompute": "selective"},
        {"compile": "on", "recompute": "selective"}]  # fmt: skip
