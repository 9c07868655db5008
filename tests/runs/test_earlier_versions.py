# ruff: noqa: F811 - pytest gives fixtures as arguments that are called as they are
"""Runs of versions before settings were named as their widgets are: recognised when finished, gone on with when cut."""

import json
import zlib

import pytest
import torch
from resuming import CUT, Listener, assert_same, caches, interrupted, model, session, steps, trainer  # noqa: F401
from safetensors import safe_open
from safetensors.torch import save_file

from flux2_train import events
from flux2_train.runs import checkpoints
from flux2_train.settings import earlier
from flux2_train.settings.objective import GuidanceSettings, LossSettings
from flux2_train.settings.optimizer import EmaSettings
from flux2_train.settings.timesteps import TimestepSettings

SETTINGS = {
    "timesteps": TimestepSettings(min=0.1, sigmoid_scale=1.5), "loss": LossSettings("huber", 0.2),
    "guidance": GuidanceSettings(guidance=2.0, contrastive_guidance=2.0), "ema": EmaSettings(0.5),
}  # fmt: skip


def as_before(training: dict) -> dict:
    """A job's ``training`` section by the names of before: what ``earlier.training`` reads, backwards."""
    values = {**training, "logs": list(earlier.LOGS[training["logs"]])}
    for before, now, names in earlier.TRAINING:
        old = {new: name for name, new in names.items()}
        values[before] = {old.get(name, name): value for name, value in values.pop(now).items()}
    values["guidance"] = values["guide"].pop("guidance")
    assert earlier.training(values) == training
    return values


def rewrite(path, change) -> None:
    """Write a safetensors file again with other metadata."""
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, change(metadata))


def checkpoint_of_before(metadata: dict) -> dict:
    said = json.loads(metadata[checkpoints.META])
    job = said["about"]["job"]
    job["training"], job["validation"] = as_before(job["training"]), job.pop("previews")
    text = json.dumps(said)
    return {**metadata, checkpoints.META: text, checkpoints.SUM: f"{zlib.crc32(text.encode()):08x}"}


def lora_of_before(metadata: dict) -> dict:
    config = json.dumps(as_before(json.loads(metadata["flux2_train.config"])))
    return {**metadata, "flux2_train.config": config}


def test_a_finished_run_is_recognised(trainer, tmp_path):
    done = session(trainer(**SETTINGS), tmp_path)
    for path in checkpoints.paths(done.folder / "checkpoints"):
        rewrite(path, checkpoint_of_before)
    rewrite(done.lora_path, lora_of_before)
    listener = Listener()
    reused = session(trainer(**SETTINGS), tmp_path, listener)
    assert reused.lora_path == done.lora_path and not listener.of(events.Stepped)
    assert all(torch.equal(reused.lora[name], done.lora[name]) for name in done.lora)


@pytest.mark.long
def test_an_interrupted_run_goes_on_to_the_same_bits(trainer, tmp_path):
    whole, folder = steps(trainer(**SETTINGS)), interrupted(trainer, tmp_path, **SETTINGS)
    for path in checkpoints.paths(folder.checkpoints):
        rewrite(path, checkpoint_of_before)
    rest, listener = trainer(**SETTINGS), Listener()
    session(rest, tmp_path, listener)
    assert [event.step for event in listener.of(events.Resumed)] == [CUT]
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])
