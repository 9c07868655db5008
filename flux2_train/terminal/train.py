"""``train CONFIG``: trains the job of a file, in one process or in all that ``accelerate launch`` has started."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..names import counted
from ..settings.job import Job
from .options import Bar, add_job, command, progress, read_job, start

DESCRIPTION = """\
Train the LoRA that a job file describes. LoRA Trainer writes such a file, job.json, into each run's folder; the same
job gives the same LoRA, on CUDA up to rounding. Ctrl-C ends after the step in progress and saves all that `resume`
needs to go on; a second one ends at once. Closing the terminal does the same as Ctrl-C.

  python -m flux2_train train output/flux2_train/zbot/job.json --set name=zbot_long --set steps=3000
  accelerate launch --multi_gpu --num_processes 2 -m flux2_train train job.json

Of several processes each takes `batch` images, so two of them do what one does with twice the batch.
"""
HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has none
STOPS = (signal.SIGINT, signal.SIGTERM, HANGUP)
SAME_SIGNAL = 1.0  # seconds: accelerate's launcher passes on a Ctrl-C that the process has already received


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "train", run, "train a LoRA from a job file", description=DESCRIPTION)
    add_job(parser)
    parser.add_argument(
        "--resume", choices=("new", "auto"), default="new",
        help="auto goes on where the last run of this name was interrupted, as LoRA Trainer does: for jobs that "
        "something starts again after a power cut (default: new)",
    )  # fmt: skip
    # For the program that has started this one: the file to tell it the run's folder, and its number as a process.
    parser.add_argument("--tell", nargs=2, default=(), help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Train, and print the LoRA's path."""
    job = read_job(arguments)
    with launched(arguments) as (accelerator, bar):
        also = telling(Path(arguments.tell[0]), int(arguments.tell[1])) if arguments.tell else lambda event: None
        train_job(*in_pack(job, arguments.config), accelerator, bar, arguments.resume, also)


def telling(path: Path, starter: int) -> Callable:
    """A listener that writes the run's folder to a file, as soon as there is one, for the process ``starter``.

    It ends the run, whose checkpoint is then saved, after that process has ended: nobody is left to show or stop it.
    """
    import psutil

    from .. import events
    from ..atomic import write_text

    process = psutil.Process(starter) if psutil.pid_exists(starter) else None

    def tell(event) -> None:
        if process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise KeyboardInterrupt
        if isinstance(event, events.Started):
            write_text(path, json.dumps({"folder": str(event.folder)}))

    return tell


def in_pack(job: Job, path: Path) -> tuple:
    """(job, pack) of a job file or of a run's folder: in a pack, the job with the pack's places on this machine."""
    from ..runs.pack import contents

    packed = contents.around(path)
    return (packed.job(job) if packed else job), packed


@contextmanager
def launched(arguments: argparse.Namespace) -> Iterator[tuple]:
    """(accelerator, bar), after ComfyUI is imported with the options of the command line."""
    from ..train import processes

    with processes.launched() as accelerator, progress(accelerator.process_index == 0) as bar:
        several = accelerator.num_processes > 1
        start(arguments, *(["--cpu"] if several and accelerator.device.type == "cpu" else []))
        yield accelerator, bar


def train_job(job: Job, packed, accelerator, bar: Bar, how, also: Callable = lambda event: None) -> None:
    """Train and print the LoRA's path. ``packed`` is the pack that the job lies in, if it does.

    ``how`` is 'new', 'auto' or a run to resume, as in ``runs.session.train``. ``also`` gets every event too, and may
    end the run by raising an exception.
    """
    from ..runs.queue.run_job import run_job

    @contextmanager
    def listening(trainer) -> Iterator:
        with _interruptible() as check:
            yield _Listener(bar, check, also)

    results = run_job(job, accelerator, bar, listening, how, packed)
    bar.close()
    if results:
        print(results.lora_path)


class _Listener:
    """Shows the run's events as a bar and lines, and ends the run after a Ctrl-C."""

    def __init__(self, bar: Bar, check, also: Callable):
        self.bar, self.check, self.also = bar, check, also

    def __call__(self, event) -> None:
        from .. import events

        match event:
            case events.Planned(text):
                self.bar.say(text)
            case events.Phase(text):
                self.bar.say(text)
            case events.Warned(text):
                self.bar.say(f"warning: {text}")
            case events.Resumed(step, total, path):
                self.bar.say(f"going on after step {step} of {total}, from {path}")
            case events.Checkpointed(step, _):
                self.bar.say(f"checkpoint after step {step}")
            case events.Steered(step, text):
                self.bar.say(f"after step {step}: {text}")
            case events.Validated(step, loss, held_out):
                self.bar.say(
                    f"{'held-out' if held_out else 'validation'} loss {loss:.4f} after {counted(step, 'step')}"
                )
            case events.SelectivityMeasured(step):
                self.bar.say(f"{event} after {counted(step, 'step')}")
            case events.BestSoFar():
                self.bar.say(str(event))
            case events.Previewed(step, pictures):
                self.bar.say(f"{counted(len(pictures), 'preview')} painted after {counted(step, 'step')}")
            case events.Stepped():
                self.bar("training", event.step, event.total)
                self.bar.bar.set_postfix(loss=f"{event.smoothed:.4f}", refresh=False)
        self.check()
        self.also(event)


@contextmanager
def _interruptible() -> Iterator:
    """Yield a function that raises KeyboardInterrupt after a Ctrl-C: a run ends between steps, not inside one.

    A stop of the system and a closed terminal do the same. After ``nohup`` a closed terminal does nothing.
    """
    pressed: list[float] = []  # when, in seconds
    terminals = [
        stream for stream in (1, 2) if os.isatty(stream)
    ]  # a terminal that is gone is no longer seen to be one

    def press(number, frame) -> None:
        now = time.monotonic()
        if number == HANGUP:
            _write_nowhere(terminals)
        if pressed and now - pressed[0] > SAME_SIGNAL:
            raise KeyboardInterrupt
        pressed.append(now)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    numbers = [number for number in STOPS if number and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, press) for number in numbers}
    try:
        yield check
    except Exception as error:
        if pressed:  # another process ended first, and this one failed inside a step because of it
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_nowhere(streams: list[int]) -> None:
    """Writing to a terminal that is gone would end the run before it is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)
