"""``train CONFIG``: the job of a file, in one process or in all that ``accelerate launch`` started."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..settings.job import Job
from .options import Bar, add_job, command, progress, read_job, start

DESCRIPTION = """\
Train the LoRA that a job file describes. LoRA Trainer writes such a file, job.json, into each run's folder; the same
job gives the same LoRA, on CUDA up to rounding. Ctrl-C ends after the step in progress and saves all that `resume`
needs to go on; a second one ends at once.

  python -m flux2_train train output/flux2_train/zbot/job.json --set name=zbot_long --set steps=3000
  accelerate launch --multi_gpu --num_processes 2 -m flux2_train train job.json

Of several processes each takes `batch` images, so two of them do what one does with twice the batch.
"""
SAME_SIGNAL = 1.0  # seconds: accelerate's launcher passes a Ctrl-C on that the process has had already


def add(commands) -> None:
    """Add the command to the parser."""
    made = command(commands, "train", run, "train a LoRA from a job file", description=DESCRIPTION)
    add_job(made)
    made.add_argument(
        "--resume", choices=("new", "auto"), default="new",
        help="auto goes on where the last run of this name was interrupted, as LoRA Trainer does, for jobs that are "
        "started again after a power cut (default: new)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Train, and print where the LoRA is."""
    job = read_job(arguments)
    with launched(arguments) as (accelerator, bar):
        train_job(job, accelerator, bar, arguments.resume)


@contextmanager
def launched(arguments: argparse.Namespace) -> Iterator[tuple]:
    """(accelerator, bar) with ComfyUI imported as the command line says."""
    from ..train import processes

    with processes.launched() as accelerator, progress(accelerator.process_index == 0) as bar:
        several = accelerator.num_processes > 1
        start(arguments, *(["--cpu"] if several and accelerator.device.type == "cpu" else []))
        yield accelerator, bar


def train_job(job: Job, accelerator, bar: Bar, how) -> None:
    """Train, ``how`` as ``run.session.train`` has it: 'new', 'auto' or a run to go on with. Prints the LoRA's path."""
    import torch

    from ..host.loading import files
    from ..runs import precision as fit
    from ..runs.prepare import new_trainer
    from ..runs.session import train
    from ..train import processes
    from .cache import encode_all

    with torch.inference_mode():  # as ComfyUI runs nodes
        parts = fit.parts_of(job.model, partial(processes.decided, accelerator))
        bar.say(parts.text)
        vae = parts.load_vae()
        with processes.main_first(accelerator):  # it fills the caches, where the others find everything
            (embeds, latents), *held_out = encode_all(job, bar, parts.load_clip(), vae)
        trainer = new_trainer(
            parts.load_model(), embeds, latents, job.training, accelerator, validation_of(job, vae),
            held_out[0] if held_out else None,
        )  # fmt: skip
        loras = Path(job.output.loras) if job.output.loras else files.lora_folder()
        runs = Path(job.output.runs) if job.output.runs else files.run_folder()
        with _interruptible() as check:
            results = train(trainer, loras, runs, _Listener(bar, check), how)
    bar.close()
    if results:
        print(results.lora_path)


def validation_of(job: Job, vae):
    """What a job's ``previews`` paint with, its second model loaded; ``None`` where it has none."""
    from ..data.images import load_rgb, to_tensor
    from ..host import describe
    from ..host.loading import files
    from ..runs import precision as fit
    from ..train.preview_request import PreviewRequest

    asked = job.previews
    if asked is None:
        return None
    references = tuple(tuple(to_tensor(load_rgb(files.resolve_file(str(path)))) for path in prompt.references)
                       for prompt in asked.prompts)  # fmt: skip
    second = asked.model and fit.parts_of(asked.model).load_model()
    return PreviewRequest(asked, vae, second, references, describe.vae_file(vae))


class _Listener:
    """Turns the run's events into a bar and lines, and ends the run where Ctrl-C asked for it."""

    def __init__(self, bar: Bar, check):
        self.bar, self.check = bar, check

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
            case events.Validated(step, loss, held_out):
                self.bar.say(f"{'held-out' if held_out else 'validation'} loss {loss:.4f} after {step} steps")
            case events.Previewed(step, pictures):
                self.bar.say(f"{len(pictures)} previews painted after {step} steps")
            case events.Stepped():
                self.bar("training", event.step, event.total)
                self.bar.bar.set_postfix(loss=f"{event.smoothed:.4f}", refresh=False)
        self.check()


@contextmanager
def _interruptible() -> Iterator:
    """Yield a function that raises KeyboardInterrupt once Ctrl-C was pressed, so that a step is never cut in two."""
    asked: list[float] = []

    def ask(number, frame) -> None:
        now = time.monotonic()
        if asked and now - asked[0] > SAME_SIGNAL:
            raise KeyboardInterrupt
        asked.append(now)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    except Exception as error:
        if asked:  # another process was faster, and this one lost it in the middle of a step
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
