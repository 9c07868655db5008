"""Ctrl-C, closing the window and a service's stop: the last whole step is saved at once, and how often else."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from children import PROCESSES, ROOT
from resuming import assert_same, caches, model, session, steps, trainer

from flux2_train.flavours import FLAVOURS
from flux2_train.runs import checkpoint_writer, checkpoints, shutdown
from flux2_train.runs.checkpoint_writer import CheckpointWriter
from flux2_train.runs.folder import STOPPED, RunFolder
from flux2_train.settings.saving import CheckpointSettings


@pytest.mark.drawn(cases=1)
@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_process_that_ends_in_a_step_saves_the_one_before(trainer, caches, tmp_path, number):
    (tmp_path / "caches").write_bytes(pickle.dumps(caches))
    command = [sys.executable, PROCESSES / "ended_run.py", tmp_path / "caches", tmp_path]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "in step 3\n"
            folder = RunFolder(tmp_path / "runs" / "run")
            assert not checkpoints.paths(folder.checkpoints)
            began = time.monotonic()
            process.send_signal(number)
            if number != signal.SIGINT:
                time.sleep(0.05)
                process.send_signal(number)  # as a closed terminal and timeout(1) do
            process.wait(60)
        finally:
            process.kill()
    assert time.monotonic() - began < 30 and process.returncode in (0, -number)
    (path,) = checkpoints.paths(folder.checkpoints)
    assert checkpoints.read(path).about.step == 2
    assert folder.about()["status"] == STOPPED and folder.about()["why"] == "the program was ended"
    assert not list(tmp_path.rglob("*.partial"))
    whole, rest = steps(trainer()), trainer()
    session(rest, tmp_path)
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])


def test_every_run_is_saved_once_whatever_one_of_them_raises():
    saved = []

    def fail():
        raise OSError("no room")

    with shutdown.saved_at_exit(lambda: saved.append(1)), shutdown.saved_at_exit(fail):
        shutdown.save_all()
        shutdown.save_all()
    assert saved == [1]
    with shutdown.saved_at_exit(lambda: saved.append(2)):
        pass
    shutdown.save_all()
    assert saved == [1]


def test_by_default_checkpoints_take_a_hundredth_of_the_time(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(checkpoint_writer.time, "monotonic", lambda: now[0])
    config = CheckpointSettings()
    assert config.every_minutes == -1
    writer = CheckpointWriter(tmp_path, config, 1, lambda: None)

    def due_after(seconds):
        writer.last_time = 1000.0
        now[0] = 1000.0 + seconds
        return writer._is_due(7)

    for cost, interval in ((0.0, 60), (0.1, 60), (2.0, 200), (30.0, 3000)):
        writer.cost = cost
        assert not due_after(interval - 1) and due_after(interval + 1)
    writer.config = replace(config, every_minutes=10.0)
    assert not due_after(599) and due_after(601)
    writer.config = replace(config, every_minutes=0.0)
    assert not due_after(1e9)
    writer.close()


def test_the_cost_of_a_checkpoint_is_measured(tmp_path):
    from test_checkpoints import snapshot

    writer = CheckpointWriter(tmp_path, CheckpointSettings(), 1, lambda: time.sleep(0.05) or snapshot(3))
    assert [event.step for event in writer.now(3)] == [3]
    assert 0.05 < writer.cost < 10
    writer.close()


@pytest.mark.slow
def test_klein_9b_at_rank_32_is_saved_within_five_seconds(tmp_path):
    """Matrices and both moments of AdamW in fp32, the most that a run of rank 32 holds; Windows gives five seconds."""
    from flux2_train.planning.planner import lora_sites
    from flux2_train.planning.weights import of_flavour

    weights = of_flavour(FLAVOURS["klein-9b"], "bf16")
    numbers = sum(count for _, count in lora_sites(weights, list(weights.linears), 32).values())
    state = {kind: torch.rand(numbers) for kind in ("adapter", "exp_avg", "exp_avg_sq")}
    about = checkpoints.About(3, 100, {}, "fingerprint", 1, None)

    def save(step):
        writer = CheckpointWriter(
            tmp_path / str(step), CheckpointSettings(), 1, lambda: checkpoints.Snapshot.of(about, state)
        )
        began = time.monotonic()
        (event,) = writer.now(3)
        seconds, size = time.monotonic() - began, event.path.stat().st_size
        writer.close()
        event.path.unlink()
        print(f"{size / 1e9:.2f} GB in {seconds:.2f} s")
        return size, seconds

    sizes, seconds = zip(*map(save, range(3)), strict=True)
    assert min(sizes) > 0.9e9 and min(seconds) < 5
