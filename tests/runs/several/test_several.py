"""What is told of processes that this one has started: their events, why they ended, and which of them is slow."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch
from children import run_in_two_processes
from safetensors.torch import save_file

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.several import launch, training
from flux2_train.runs.several.following import Followed, Record, size_of
from flux2_train.runs.several.reasons import why
from flux2_train.runs.several.training import count_of, losses_of
from flux2_train.settings.saving import CheckpointSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.terminal.train import telling
from flux2_train.train import processes

CONFIG = TrainingSettings()
LAUNCHER = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 7)
  traceback : {said}
"""


@pytest.mark.parametrize("best, file", [("off", "zbot"), ("beside", "zbot"), ("result", "zbot_best")])
def test_the_graph_gets_the_lora_that_checkpoints_asks_for(run, tmp_path, best, file):
    for name in ("zbot", "zbot_best"):
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors", metadata={"flux2_train.certificate": "true"})
    run.note(lora="zbot.safetensors", best={"step": 1, "lora": "zbot_best.safetensors"})
    found = training._results(run, tmp_path, replace(CONFIG, checkpoints=CheckpointSettings(best=best)))
    assert list(found.lora) == [file] and found.lora_path.stem == file and found.certificate == "true"


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def write(run, *lines, end="\n"):
    with run.record.open("a") as file:
        file.write("\n".join(map(json.dumps, lines)) + end)


def test_a_record_becomes_the_events_that_it_was_written_from(run):
    write(run, {"kind": "began", "total": 9}, {"kind": "resumed", "step": 4, "total": 9})
    followed = Followed(CONFIG, 0)
    record = Record(run, followed)
    resumed, recorded = record.news()
    assert len(followed.history.losses) == 4
    assert (resumed.step, resumed.total, resumed.path.parents[1].name) == (4, 9, run.name)
    assert recorded == events.Recorded(0, ({"kind": "began", "total": 9}, {"kind": "resumed", "step": 4, "total": 9}))
    steps = {"kind": "steps", "first": 5, "total": 9, "loss": [0.5, None], "smoothed": [0.5, 0.4], "seconds": [2, 3]}
    write(
        run,
        steps,
        {"kind": "warning", "text": "w", "pictures": ["a.png"]},
        {"kind": "saved", "file": "a.safetensors", "stopped": True},
    )
    first, second, warned, saved, recorded = record.news()
    assert first == events.Stepped(5, 9, 0.5, 0.5, 0.0, 2) and second == events.Stepped(6, 9, 0.0, 0.4, 0.0, 3)
    assert warned == events.Warned("w", pictures=("a.png",)) and saved.stopped and saved.path.name == "a.safetensors"
    assert recorded.first == 2 and (followed.step, followed.total, followed.history.seconds) == (6, 9, [2, 3])
    assert not list(record.news())


def test_a_line_that_is_half_written_waits_for_its_rest_and_a_broken_one_is_left_out(run):
    record = Record(run, Followed(CONFIG, 9))
    assert not list(record.news())  # no file yet
    write(run, {"kind": "phase", "text": "loading"}, end="")
    assert not list(record.news())
    run.record.open("a").write('\n{"kind"\n')
    phase, recorded = record.news()
    assert phase == events.Phase("loading") and recorded.first == 0


def test_what_was_told_before_the_run_went_on_is_left_out(run):
    write(run, {"kind": "warning", "text": "old"}, {"kind": "warning", "text": "old"})
    record = Record(run, Followed(CONFIG, 9), size_of(run.record))
    write(run, {"kind": "warning", "text": "new"})
    warned, recorded = record.news()
    assert warned == events.Warned("new") and recorded.first == 2


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("Traceback\nRuntimeError: peer\nerror: There is no folder x.\nmore" + LAUNCHER, "There is no folder x."),
        ("[rank1]: error: Its card is gone.", "Its card is gone."),
        (LAUNCHER.format(code=-9, said="Signal 9"), "Process 1 of 2 (counted from 0) was ended by SIGKILL; the system "
         "does that when host memory runs out."),
        (LAUNCHER.format(code=-15, said="x"), "Process 1 of 2 (counted from 0) was ended by SIGTERM."),
        ("ImportError: no torch" + LAUNCHER.format(code=1, said="x"), "A process ended with ImportError: no torch"),
        (LAUNCHER.format(code=5, said="x"), "Process 1 of 2 (counted from 0) ended with exit code 5."),
        ("first\nlast words\n\n", "The processes ended early: last words"),
        ("", "The processes ended early: they said nothing"),
    ],
)  # fmt: skip
def test_why_processes_ended_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "log").write_text(text)
    assert why(tmp_path / "log", 2) == sentence


def test_a_log_that_is_gone_is_no_error(tmp_path):
    assert "they said nothing" in why(tmp_path / "log", 2)


@pytest.mark.long
def test_every_process_that_was_started_is_ended():
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    process = subprocess.Popen([sys.executable, "-c", f"{deaf}{child}; print(1, flush=True); time.sleep(99)"],
                               stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip
    process.stdout.readline()
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    began = time.monotonic()
    launch.end(process, patience=1)
    assert time.monotonic() - began < 20 and len(family) == 2
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)
    launch.end(process)


def test_as_many_processes_as_cards_and_one_on_a_cpu():
    import torch

    most = torch.cuda.device_count() or os.cpu_count()
    assert count_of(CONFIG) == 1 and count_of(TrainingSettings(processes=most)) == most
    with pytest.raises(UserError, match=f"processes is {most + 1}, and this computer has .*set it to at most that"):
        count_of(TrainingSettings(processes=most + 1))
    assert count_of(TrainingSettings(processes=0)) == max(1, torch.cuda.device_count())


def test_a_run_ends_with_the_process_that_started_it(tmp_path):
    tell = telling(tmp_path / "told", os.getpid())
    tell(events.Started(tmp_path))
    assert json.loads((tmp_path / "told").read_text()) == {"folder": str(tmp_path)}
    starter = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tell = telling(tmp_path / "told", starter.pid)
    tell(events.Completed(1))
    starter.communicate(b"\n")
    with pytest.raises(KeyboardInterrupt):
        tell(events.Completed(2))
    with pytest.raises(KeyboardInterrupt):
        telling(tmp_path / "told", starter.pid)(events.Completed(2))


def test_losses_are_read_from_the_table(run):
    assert losses_of(run.path) == []
    run.losses.write_text("step,loss,smoothed\n1,0.5,0.5\n2,0.25,0.4\n")
    assert losses_of(run.path) == [0.5, 0.25]


def test_the_launcher_has_a_place_for_every_word():
    line = launch.command(2, ["train", "job.json"], 0)
    assert line[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert line[-4:] == ["-m", "flux2_train", "train", "job.json"] and line[line.index("--num_processes") + 1] == "2"
    assert line[line.index("--num_cpu_threads_per_process") + 1] == "1"
    assert launch.comfyui_options(["--cpu", "--base-directory", "a b"]) == "--comfyui=--cpu --base-directory 'a b'"


@pytest.mark.long
def test_a_process_for_which_the_others_wait_is_named_once(tmp_path):
    done = run_in_two_processes("pace_probe.py", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    both = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1)]
    assert both[0][2] == both[1][2] > 0.1 and processes.Pace(processes.alone()).slowest(2.5) == 2.5
    for (ones, step), said, _ in both:
        assert (ones, step) == (2, 2 * (processes.PACE_STEPS + 1))
        (words,) = filter(None, said)
        assert words.startswith("Process 1 of 2 (counted from 0) takes 0.1") and "they wait for it" in words
