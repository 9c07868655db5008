"""Runs of real terminal processes that are interrupted, taken up, and ended from another terminal."""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import options_for

from flux2_train.runs import checkpoints
from flux2_train.runs.folder import RunFolder
from flux2_train.terminal.main import main

if sys.platform != "win32":
    import fcntl
    import termios

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(comfy_folders):
    """ComfyUI's options for another process with this one's folders."""
    return options_for(comfy_folders)


@pytest.fixture
def job(nano, tmp_path):
    """A job on robots that never ends by itself."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps({
        "model": {"flavour": "nano"}, "dataset": {"folder": "robot", "resolution": 64},
        "training": {"name": "cut", "steps": 100_000, "rank": 2, "learning_rate": 2e-3, "validation_items": 0},
        "output": {"loras": str(tmp_path / "loras"), "runs": str(tmp_path / "runs")},
    }))  # fmt: skip
    return path


def started(tmp_path, base, *arguments):
    """A process that has begun to train; its stdout and log are files."""
    log = tmp_path / f"{arguments[0]}.log"
    command = [sys.executable, "-m", "flux2_train", *map(str, arguments), "--comfyui", base]
    with log.open("w") as err, log.with_suffix(".out").open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
    deadline = time.monotonic() + 300
    while "training:" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return process, log


@pytest.mark.long
def test_interrupted_taken_up_and_stopped_it_is_the_run_of_that_many_steps(job, base, tmp_path, capsys):
    run = RunFolder(tmp_path / "runs" / "cut")
    process, log = started(tmp_path, base, "train", job)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, log.read_text()
    cut = run.about()["step"]
    assert run.about()["status"] == "stopped" and f"checkpoint after step {cut}" in log.read_text()

    assert main(["resume", str(run.path), "--set", "rank=5"]) == 1
    assert "rank was 2 and is 5" in capsys.readouterr().err
    assert main(["stop", str(run.path)]) == 1
    assert "No run cut is being trained" in capsys.readouterr().err

    process, log = started(tmp_path, base, "train", job, "--resume", "auto")
    assert main(["stop", str(run.path)]) == 0
    assert process.wait(120) == 0, log.read_text()
    assert f"going on after step {cut} of 100000" in log.read_text()
    ours = Path(log.with_suffix(".out").read_text().strip())
    assert ours == tmp_path / "loras" / "cut.safetensors"
    steps = run.about()["step"]
    assert run.about()["status"] == "finished" and steps > cut

    longer = f"steps={steps + 2}"
    assert main(["resume", str(run.path), "--set", longer]) == 0
    ours = Path(capsys.readouterr().out.strip())
    assert ours == tmp_path / "loras" / "cut.safetensors" and run.about()["step"] == steps + 2
    assert (tmp_path / "loras" / f"cut_step{steps}.safetensors").is_file()
    assert main(["train", str(run.job), "--set", longer, "--set", "name=straight"]) == 0
    straight = load_file(tmp_path / "loras" / "straight.safetensors")
    assert all(torch.equal(straight[name], value) for name, value in load_file(ours).items())


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes a terminal's programs in its own way")
def test_a_run_whose_terminal_is_closed_is_saved(job, base, tmp_path):
    run = RunFolder(tmp_path / "runs" / "cut")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-m", "flux2_train", "train", str(job), "--comfyui", base]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 300
    try:
        while b"training:" not in shown:
            assert process.poll() is None and time.monotonic() < deadline, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 4096)
        os.close(ours)
        process.wait(120)
    finally:
        process.kill()
    assert run.about()["status"] == "stopped" and run.about()["step"] > 0
    (path,) = checkpoints.paths(run.checkpoints)
    assert checkpoints.read(path).about.step == run.about()["step"]


def test_a_run_that_is_not_there_is_told(capsys):
    assert main(["resume", "nothing"]) == main(["stop", "nothing"]) == 2
    assert "There is no run nothing" in capsys.readouterr().err
