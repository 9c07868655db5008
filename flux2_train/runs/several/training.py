"""Trains a job in several processes: starts them, tells what they tell, and ends them when it is told to end."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ... import safetensors_header
from ...adapters.header import opened_lora
from ...atomic import write_text
from ...bounded import from_json, read_text
from ...data.images import load_rgb, to_tensor
from ...errors import Paused, UserError
from ...events import Phase, Recorded, Started
from ...names import counted
from ...settings.job import Job, Output
from ...settings.steering import PAUSE, Request
from ...settings.training import TrainingSettings
from .. import checkpoints
from ..folder import FINISHED, PAUSED, RunFolder
from ..live.asking import ask
from ..results import Results
from ..session import Listen
from ..writers.best_lora import result_file
from . import launch
from .following import Followed, Record, size_of
from .reasons import end_of, why

LOOK = 0.25  # seconds between two looks at the record
LAST_STEP = 60.0  # seconds, beside twice the longest step, in which a run that was asked to pause has to end
MOST_BYTES = 1 << 16  # of what a process tells of its folder
BIGGEST_TABLE = 1 << 28
SHOWN = 4000  # characters of the processes' log that the console shows after an error


@dataclass(frozen=True)
class Place:
    """Where the processes find ComfyUI, with which of its options they start, and where they write."""

    comfyui: Path
    options: Sequence[str]
    loras: Path
    runs: Path


def count_of(config: TrainingSettings) -> int:
    """How many processes a run is to have; 0 in the settings means one for each CUDA device.

    Raises UserError for more processes than there are cards, or cores where there is no card.
    """
    cards, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if config.processes > max(1, cards or cores):
        there = counted(cards, "CUDA card") if cards else f"no CUDA card and {counted(cores, 'core')}"
        raise UserError(
            f"processes is {config.processes}, and this computer has {there}: set it to at most that; accumulate gives "
            "a step more images."
        )
    return config.processes or max(1, cards)


def train(
    job: Job, followed: Followed, place: Place, listen: Listen, check: Callable[[], None], resume: str
) -> Results:
    """Train ``job`` in as many processes as it says, with ``train --resume RESUME``.

    ``check`` is called a few times a second; what it raises ends the run: its processes are asked to pause, so that a
    checkpoint is saved after the step in progress. Raises UserError with the sentence that a process has said if one of
    them ends early, and Paused if somebody has paused the run.
    """
    with tempfile.TemporaryDirectory(prefix="flux2_train") as temporary:
        folder = Path(temporary)
        run_file, log, path = folder / "run.json", folder / "log.txt", folder / "job.json"
        job = replace(job, output=Output(str(place.loras.absolute()), str(place.runs.absolute())))
        write_text(path, job.to_json())
        count = job.training.processes
        tell = ["--tell", str(run_file), str(os.getpid())]
        words = ["train", str(path), "--resume", resume, *tell, launch.comfyui_options(place.options)]
        line = launch.command(count, words, torch.get_num_threads() // count)
        listen(Phase(f"starting {count} processes"))
        before = {each: size_of(each) for each in place.runs.glob("*/record.jsonl")}
        processes = launch.start(line, log, place.comfyui)
        try:
            run = _Watched(processes, run_file, followed, listen, check, before).to_the_end()
        finally:
            launch.end(processes)
        if run is None or run.about().get("status") != FINISHED:  # finished: the LoRA is saved, however they end
            raise _ended(run, log, count)
        return _results(run, place.loras, job.training)


class _Watched:
    """The processes of a run while they train."""

    def __init__(
        self, processes: subprocess.Popen, run_file: Path, followed: Followed, listen: Listen,
        check: Callable[[], None], before: dict[Path, int],
    ):  # fmt: skip
        self.processes, self.run_file, self.followed = processes, run_file, followed
        self.listen, self.check, self.before = listen, check, before
        self.run: RunFolder | None = None
        self.record: Record | None = None

    def to_the_end(self) -> RunFolder | None:
        """Tell everything until all have ended. Returns the run, ``None`` if it has not begun."""
        try:
            while self.processes.poll() is None:
                self._look()
                self.check()
                time.sleep(LOOK)
            self._look()
        except BaseException:
            self._pause()
            raise
        return self.run

    def _look(self) -> None:
        if self.run is None and self.run_file.is_file():
            self.run = RunFolder(Path(from_json(read_text(self.run_file, MOST_BYTES))["folder"]))
            self.record = Record(self.run, self.followed, self.before.get(self.run.record, 0))
            self.listen(Started(self.run.path))
        for event in self.record.news() if self.record else ():
            self.listen(event)

    def _pause(self) -> None:
        """Ask the run for its checkpoint and wait for its end, as long as a step may take."""
        if self.run is None or not self.followed.config.checkpoints.keep:
            return
        with suppress(UserError):
            ask(self.run, Request(PAUSE))
            patience = LAST_STEP + 2 * max(self.followed.history.seconds, default=0)
            with suppress(subprocess.TimeoutExpired):
                self.processes.wait(patience)
        with suppress(BaseException):  # the first one matters
            for event in self.record.news():
                if isinstance(event, Recorded):
                    self.listen(event)


def _ended(run: RunFolder | None, log: Path, count: int) -> Exception:
    """What to raise for processes that have not finished the run."""
    about = run.about() if run else {}
    if about.get("status") == PAUSED:
        step = about.get("step", 0)
        return Paused(step, saved=any(run.checkpoints.glob(f"step_{step:08}*")))
    saved = max(map(checkpoints.step_of, checkpoints.paths(run.checkpoints)), default=0) if run else 0
    kept = f" Step {saved} is saved, and queueing again goes on from there." if saved else ""
    logging.warning("What the processes have said:\n%s", end_of(log)[-SHOWN:])
    return UserError(why(log, count) + kept)


def _results(run: RunFolder, loras: Path, config: TrainingSettings) -> Results:
    """The results of a finished run, from its files."""
    path = result_file(run, loras, config.checkpoints.best)
    with safetensors_header.opened(path) as file:
        lora = opened_lora(file)
    return Results(lora, path, run.path, lora.header.get("flux2_train.certificate", ""))


def losses_of(run: Path) -> list[float]:
    """The loss of every step of a run, empty if its table is gone."""
    try:
        rows = csv.DictReader(read_text(RunFolder(run).losses, BIGGEST_TABLE).splitlines())
        return [float(row["loss"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        return []


def plot_of(run: Path) -> Tensor:
    """The loss plot of a run as IMAGE (1, H, W, 3), a black pixel if it is gone."""
    try:
        return to_tensor(load_rgb(RunFolder(run).plot))
    except (OSError, ValueError):
        return torch.zeros(1, 1, 1, 3)
