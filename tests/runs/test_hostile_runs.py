"""Disks that are full, folders that cannot be written, locks that are missing: a sentence, and the run goes on."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import ROOT
from hostile import full_disk, within
from resuming import CONFIG, Listener, Stop, caches, interrupted, model, session, trainer
from safetensors import safe_open
from safetensors.torch import save_file

from flux2_train import events
from flux2_train.adapters import files
from flux2_train.atomic import ENDING, apart, move, replacing, sweep
from flux2_train.data import cache as caching
from flux2_train.errors import UserError
from flux2_train.events import Warned
from flux2_train.runs import checkpoints, resume
from flux2_train.runs.checkpoints import Snapshot
from flux2_train.runs.folder import FINISHED, STOPPED, RunFolder
from flux2_train.runs.session import train
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's file systems and signals")
EACH_STEP = CheckpointSettings(every_steps=1, every_minutes=0)


def run(trainer, loras, runs, listener, how=resume.NEW):
    with torch.inference_mode():
        return train(trainer, loras, runs, listener, how)


def warnings(listener):
    return [event.text for event in listener.of(Warned)]


# a full disk


@LINUX
@pytest.mark.long
def test_a_run_on_a_disk_that_is_full_at_the_start_says_so_and_saves_the_lora(trainer, tmp_path):
    listener = Listener()
    with full_disk() as disk:
        results = run(trainer(checkpoints=EACH_STEP), tmp_path / "loras", disk.path / "runs", listener)
        assert results.lora_path.is_file() and "100% of the trained strength" in results.certificate
        told = warnings(listener)
        for what in ("run.json", "job.json", "dataset.json", "The plan", "report.json", "loss.csv", "loss.png"):
            assert sum(text.startswith(f"{what} could not be written (No space") for text in told) <= 2, told
        assert sum("The checkpoint of step" in text for text in told) == 1
        assert any(text.startswith("job.json could not be written (No space left on device); the run") for text in told)
        assert RunFolder(results.folder).about().get("status") != "running"  # nothing says what is not true


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("ends", ["finished", "cancelled"])
def test_a_disk_that_fills_up_midway_is_told_once_and_the_state_is_true(trainer, tmp_path, ends):
    told = []

    def listen(event):
        told.append(event)
        if isinstance(event, events.Stepped) and event.step == 1:
            disk.fill()
        if isinstance(event, events.Completed) and event.step == 4 and ends == "cancelled":
            raise Stop

    with full_disk(free=1 << 20) as disk:
        asked = trainer(checkpoints=EACH_STEP)
        if ends == "cancelled":
            with pytest.raises(Stop):
                run(asked, tmp_path / "loras", disk.path / "runs", listen)
        else:
            run(asked, tmp_path / "loras", disk.path / "runs", listen)
        texts = [event.text for event in told if isinstance(event, Warned)]
        assert sum("The checkpoint of step" in text for text in texts) == 1
        assert len(texts) == len(set(texts))
        about = RunFolder(disk.path / "runs" / "run").about()
        assert about["status"] == (STOPPED if ends == "cancelled" else FINISHED) and about["step"] >= 4
    name = "run_step4.safetensors" if ends == "cancelled" else "run.safetensors"
    assert [path.name for path in (tmp_path / "loras").iterdir()] == [name]


@LINUX
def test_a_lora_that_would_not_fit_is_refused_before_the_first_step(trainer, tmp_path):
    listener = Listener()
    with full_disk() as disk, within(20), pytest.raises(UserError, match=r"The LoRA needs 1 MB .* has 0 MB free"):
        run(trainer(), disk.path, tmp_path / "runs", listener)
    assert listener.received == [] and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("below", [False, True])
def test_a_folder_for_loras_that_is_a_file_is_told_before_the_first_step(trainer, tmp_path, below):
    loras, listener = tmp_path / "loras", Listener()
    loras.write_text("in the way")
    with pytest.raises(UserError, match=r"The LoRA run could not be saved in .*loras.* before the run"):
        run(trainer(), loras / "below" if below else loras, tmp_path / "runs", listener)
    assert listener.received == [] and not (tmp_path / "runs").exists()


@LINUX
def test_a_folder_for_loras_that_cannot_be_written_is_told_before_the_first_step(trainer, tmp_path):
    listener = Listener()
    with full_disk(free=1 << 21) as disk:
        done = subprocess.run(["mount", "-o", "remount,ro", disk.path], capture_output=True)
        if done.returncode:
            pytest.skip("nothing can be mounted read-only here")
        with pytest.raises(UserError, match=r"could not be saved in .* \(Read-only file system\)"):
            run(trainer(), disk.path / "loras", tmp_path / "runs", listener)
    assert listener.received == []


@pytest.mark.long
def test_the_longest_name_is_trained_saved_and_numbered(trainer, tmp_path):
    name = "人" * 66  # 198 bytes
    for number in ("", "_2"):
        results = session(trainer(name=name, steps=1), tmp_path, how=resume.NEW)
        assert results.lora_path.name == f"{name}{number}.safetensors" and results.folder.name == f"{name}{number}"
    with pytest.raises(Stop):
        session(trainer(name=name), tmp_path, Listener(2), resume.NEW)
    assert (tmp_path / "loras" / f"{name}_3_step2.safetensors").is_file()


# nothing is lost, nothing is left


def test_a_file_that_appears_while_another_is_written_stays(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileExistsError), replacing(path, new=True) as partial:
        partial.write_text("ours")
        path.write_text("theirs")
    with apart(path) as folder:
        (folder / "a").write_text("ours")
        with pytest.raises(FileExistsError):
            move(folder / "a", path, new=True)
        placed = files.place(folder / "a", tmp_path, "a")
    assert path.read_text() == "theirs" and placed.name == "a_2.safetensors" and placed.read_text() == "ours"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "a_2.safetensors"]
    (tmp_path / "peft").mkdir()
    with apart(path) as folder:
        (folder / "peft").mkdir()
        (folder / "peft" / "x").touch()
        assert files.place(folder / "peft", tmp_path, "peft", "peft").name == "peft_2"
    assert (tmp_path / "peft_2" / "x").is_file() and not any((tmp_path / "peft").iterdir())


def test_a_lora_of_that_name_that_appears_during_the_run_is_not_replaced(trainer, tmp_path):
    def listen(event):
        if isinstance(event, events.Stepped) and event.step == 2:
            (tmp_path / "loras").mkdir()
            (tmp_path / "loras" / "run.safetensors").write_text("another trainer's")

    results = session(trainer(), tmp_path, listen, resume.NEW)
    assert results.lora_path.name == "run_2.safetensors"
    assert (tmp_path / "loras" / "run.safetensors").read_text() == "another trainer's"


@pytest.mark.parametrize("format", ["comfyui", "peft"])
def test_a_cancel_while_saving_leaves_no_file_under_the_loras_name(trainer, tmp_path, monkeypatch, format):
    """It comes in the certificate, a small prediction, which asks ComfyUI whether to stop."""
    from flux2_train.host.lora import certificate

    def cancelled(*_):
        (names,) = [path for path in (tmp_path / "loras").iterdir()]
        assert names.name.startswith(".run") and names.name.endswith(ENDING)
        raise Stop

    monkeypatch.setattr(certificate, "certify", cancelled)
    with pytest.raises(Stop):
        session(trainer(save=SaveSettings(format)), tmp_path, Listener())
    assert not any((tmp_path / "loras").iterdir())


KILLED = """
import sys, torch
from pathlib import Path
from flux2_train.adapters import files
print("ready", flush=True)
files.save({"a": torch.zeros(100_000_000)}, Path(sys.argv[1]) / "a.safetensors", {})
"""


@LINUX
@pytest.mark.long
def test_what_a_kill_leaves_while_a_lora_is_written_is_swept(tmp_path):
    """The safetensors library writes to a name of its own, .tmp and six letters, which nobody removed."""
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while not list(tmp_path.rglob(".tmp*")):
            assert process.poll() is None
        process.kill()
    left = list(tmp_path.rglob(".tmp*"))
    assert left and not (tmp_path / "a.safetensors").exists()
    sweep(tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_earlier_versions_left_is_swept_when_it_is_a_day_old(tmp_path):
    save_file({"a": torch.zeros(9)}, tmp_path / ".tmpAbC123")
    (tmp_path / ".tmpEmpty1").touch()
    (tmp_path / ".tmpOther2").write_text("another program's notes")
    (tmp_path / ".tmp").touch()
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # one may be being written
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 90_000,) * 2)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp", ".tmpOther2"]


# checkpoints and locks


SPOILED = {
    "no state": lambda state: {},
    "a step in words": lambda state: {**state, "step": "two"},
    "weights of another rank": lambda state: {**state, "adapter": {k: v[:1] for k, v in state["adapter"].items()}},
    "no generator": lambda state: {**state, "generator": torch.zeros(3)},
    "a list for the optimizer": lambda state: {**state, "optimizer": [1]},
    "no guards": lambda state: {**state, "guards": {"bad_losses": {}}},
}


@pytest.mark.drawn(cases=3)
@pytest.mark.long(cases=1)
@pytest.mark.parametrize("how", SPOILED)
def test_a_checkpoint_of_right_sums_and_wrong_content_is_damaged(trainer, tmp_path, how):
    folder = interrupted(trainer, tmp_path, at=4, checkpoints=replace(EACH_STEP, keep=3))
    *_, before, newest = checkpoints.paths(folder.checkpoints)
    found = checkpoints.read(newest)
    Snapshot.of(found.about, SPOILED[how](found.load())).write(folder.checkpoints)
    listener, rest = Listener(), trainer(checkpoints=replace(EACH_STEP, keep=3))
    session(rest, tmp_path, listener)
    assert [event.step for event in listener.of(events.Resumed)] == [checkpoints.step_of(before)]
    (said,) = [text for text in warnings(listener) if "is damaged" in text]
    assert newest.name in said and newest.with_name(f"{newest.name}.damaged").is_file()


@pytest.mark.long
def test_where_every_checkpoint_is_wrong_a_run_begins_anew(trainer, tmp_path):
    folder = interrupted(trainer, tmp_path)
    (path,) = checkpoints.paths(folder.checkpoints)
    found = checkpoints.read(path)
    Snapshot.of(found.about, {"step": 2}).write(folder.checkpoints)
    listener = Listener()
    results = session(trainer(), tmp_path, listener)
    assert results.folder.name == "run_2" and not listener.of(events.Resumed)
    with pytest.raises(UserError, match="The run run has no checkpoint that can be used"):
        session(trainer(), tmp_path, Listener(), folder)


NO_LOCKS = "int flock(int fd, int operation) { (void)fd; (void)operation; errno = ENOSYS; return -1; }"
WITHOUT = """
import sys
from pathlib import Path
from flux2_train.runs.folder import RunFolder
folder = RunFolder.create(Path(sys.argv[1]), "run")
assert not folder.is_held()
with folder.held() as unlocked:
    print(unlocked or folder.is_held())
assert not folder.is_held()
"""


@LINUX
def test_a_file_system_without_locks_is_told_and_trained_on(tmp_path):
    """As some network file systems: the system's call says that it does not exist."""
    (tmp_path / "no_locks.c").write_text(f"#include <errno.h>\n{NO_LOCKS}\n")
    library = tmp_path / "no_locks.so"
    compiled = subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "no_locks.c"], capture_output=True)
    if compiled.returncode:
        pytest.skip("there is no C compiler")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, tmp_path / "runs"], cwd=ROOT, env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # newer versions of filelock hold a file of their own instead, older ones refuse
    assert done.stdout == "True\n" or "do not train this run in two programs at once" in done.stdout


# latents that are no numbers, and what leaves the computer


def test_a_first_image_of_nan_does_not_spoil_the_certificate(trainer, tmp_path):
    asked = trainer()
    whole = asked.samples.latents
    view = asked.samples.items[0].view
    asked.samples.latents = {each: whole[each] * (float("nan") if each == view else 1) for each in whole}
    results = session(asked, tmp_path, Listener(), resume.NEW)
    assert "100% of the trained strength" in results.certificate


def test_latents_that_are_no_numbers_are_named_where_they_are_cached(robot, tmp_path):
    from flux2_train.data.store import Store

    class Broken:
        identity = "broken"

        def __call__(self, images):
            latents = torch.zeros(len(images), 128, images.shape[1] // 16, images.shape[2] // 16)
            return latents.index_fill(0, torch.tensor([0]), float("nan"))

    with pytest.raises(UserError, match=rf"{robot.dataset.items[0].path.name} .*not finite.*vae_precision"):
        caching.cache_latents(robot.dataset, Broken(), Store(tmp_path))


@pytest.mark.long
def test_nothing_that_leaves_the_computer_tells_where_its_files_lie(trainer, tmp_path, monkeypatch):
    """The LoRA is published, TensorBoard's folder is shared, wandb sends its file: none has the home folder in it."""
    home = tmp_path / "home-of-alice"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    (home / "loras").mkdir(parents=True)
    first = session(trainer(steps=1), tmp_path / "first", Listener(), resume.NEW)
    start = home / "loras" / "start.safetensors"
    start.write_bytes(first.lora_path.read_bytes())
    asked = trainer(adapter=AdapterSettings(start_from=str(start)), logs="csv, TensorBoard and Weights & Biases")
    monkeypatch.chdir(home)
    results = session(asked, home, Listener(), resume.NEW)
    outputs = [results.lora_path, *results.folder.glob("tensorboard/*"), *results.folder.glob("wandb/*run*/*.wandb"),
               *results.folder.glob("wandb/*run*/files/**/*"), *results.folder.glob("*.png")]  # fmt: skip
    outputs = [path for path in outputs if path.is_file()]
    assert {path.suffix for path in outputs} >= {".safetensors", ".wandb", ".png"} and len(outputs) >= 4
    for path in outputs:
        assert b"home-of-alice" not in path.read_bytes(), path
    with safe_open(results.lora_path, "pt") as file:
        config = json.loads(file.metadata()["flux2_train.config"])
    assert config["adapter"]["start_from"] == "start.safetensors"
    assert json.loads((results.folder / "job.json").read_text())["training"]["adapter"]["start_from"] == str(start)
    listener = Listener()
    again = session(trainer(adapter=asked.config.adapter, logs=asked.config.logs), home, listener)
    assert again.lora_path == results.lora_path and not listener.of(events.Stepped)  # it is recognised all the same
