"""A run of two processes that is killed and taken up by two is the one that was not; by another number it is told."""

import json
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import run_in_two_processes
from safetensors.torch import load_file
from support import brief_flux2, tiny_caches

from flux2_train.errors import UserError
from flux2_train.events import Resumed
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.resume import AUTO, NEW
from flux2_train.runs.session import train
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.optimizer import EmaSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.training import TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
# Whatever draws or remembers: noise, dropout, class captions, moving average, validation.
CONFIG = TrainingSettings(
    name="cut", steps=8, rank=2, learning_rate=2e-3, batch=2, preservation=0.5, validation_items=3, seed=5,
    adapter=AdapterSettings(dropout=0.2), ema=EmaSettings(ema_decay=0.9), save=SaveSettings(precision="fp32"),
    checkpoints=CheckpointSettings(every_steps=2, every_minutes=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def caches():
    return tiny_caches(repeats=3)


def launch(place, caches, *runs):
    """What two processes said that do these runs one after the other, and how they ended."""
    (place / "caches").write_bytes(pickle.dumps(caches))
    received = json.dumps([(config.to_json(), *rest) for config, *rest in runs])
    done = run_in_two_processes("session_tiny.py", place / "caches", place, received)
    return done.returncode, done.stderr


def lora(place, name):
    return load_file(place / "loras" / f"{name}.safetensors")


def alone(place, caches, how=AUTO, **changes):
    """Go on in this process. Returns (LoRA, the steps after which it was taken up)."""
    trainer, received = new_trainer(brief_flux2(), *caches, replace(CONFIG, **changes)), []
    with torch.inference_mode():
        results = train(trainer, place / "loras", place / "runs", received.append, how)
    return load_file(results.lora_path), [event.step for event in received if isinstance(event, Resumed)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, caches):
    """Of two processes each: a whole run, a short one, and one whose main process is killed in the fifth step."""
    place = tmp_path_factory.mktemp("two")
    failed, said = launch(
        place, caches, (replace(CONFIG, name="straight"), NEW, 0, 0),
        (replace(CONFIG, name="short", steps=4, adapter=AdapterSettings()), NEW, 0, 0), (CONFIG, NEW, 5,
        signal.SIGKILL),
    )  # fmt: skip
    assert failed == -signal.SIGKILL or "Signal 9" in said, said
    assert RunFolder(place / "runs" / "cut").about()["status"] == "running"
    return place


@pytest.mark.long
def test_killed_and_taken_up_by_two_processes_it_is_the_run_that_was_not(runs, caches, full_size):
    folder = RunFolder(runs / "runs" / "cut")
    if full_size:
        failed, _ = launch(runs, caches, (CONFIG, "cut", 6, 0))
        assert failed and folder.about()["status"] == "failed" and "step 6 shall be the last" in folder.about()["why"]
        failed, _ = launch(runs, caches, (CONFIG, AUTO, 7, signal.SIGTERM))
        assert failed
    failed, said = launch(runs, caches, (CONFIG, AUTO, 0, 0), (CONFIG, AUTO, 0, 0))
    assert not failed, said
    about = folder.about()
    assert about["status"] == "finished" and about["resumed"][0]["step"] in (2, 4)
    straight, ours = lora(runs, "straight"), lora(runs, "cut")
    assert straight.keys() == ours.keys() and all(torch.equal(straight[name], ours[name]) for name in straight)
    names = {path.name for path in (runs / "runs").iterdir()}
    assert names == {"straight", "short", "cut"}  # the second time it was finished
    print(f"two processes, taken up after {[each['step'] for each in about['resumed']]}: bit-identical")


@pytest.mark.long
def test_another_number_of_processes_is_named_or_makes_the_same_step(runs, caches):
    """Equal as in test_processes: 1e-4 by norm. Without dropout, whose numbers depend on what runs together."""
    short = {"name": "short", "steps": 8, "adapter": AdapterSettings()}
    words = r"a step had 4 images \(batch 2 x accumulate 1 x 2 processes\) and has 2 images \(batch 2 x accumulate 1 x "
    with pytest.raises(UserError, match=rf"{words}1 process\)"):
        alone(runs, caches, RunFolder(runs / "runs" / "short"), **short)
    ours, taken_up = alone(runs, caches, RunFolder(runs / "runs" / "short"), **short, batch=4)
    assert taken_up == [4]
    whole, nothing = alone(runs / "whole", caches, NEW, **short, batch=4)
    assert not nothing and all((ours[name] - whole[name]).norm() < 1e-4 * whole[name].norm() for name in whole)


@pytest.mark.slow
def test_killed_with_a_shared_base_it_goes_on_in_one_process_with_a_whole_one(tmp_path, caches):
    """All processes end, though each waits for parts of the base that another has; no checkpoint holds any of it."""
    plain = {"name": "shared", "adapter": AdapterSettings()}
    failed, said = launch(
        tmp_path, caches, (replace(CONFIG, **plain, memory=MemorySettings(share_base=True)), NEW, 5, signal.SIGKILL)
    )
    ended, folder = time.time(), RunFolder(tmp_path / "runs" / "shared")
    assert failed == -signal.SIGKILL or "Signal 9" in said, said
    assert json.loads(folder.job.read_text())["training"]["memory"]["share_base"] is True
    seconds = ended - max(path.stat().st_mtime for path in folder.path.rglob("*") if path.is_file())
    ours, taken_up = alone(tmp_path, caches, folder, **plain, batch=4)
    assert taken_up == [4] and seconds < 30
    whole, nothing = alone(tmp_path / "whole", caches, NEW, **plain, batch=4)
    assert not nothing and all((ours[name] - whole[name]).norm() < 1e-4 * whole[name].norm() for name in whole)
    print(f"from kill -9 of the main process to the end of all: {seconds:.1f} s at most")
