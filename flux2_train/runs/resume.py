"""Whether a run goes on from an earlier one, from which checkpoint, and what may differ by then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..settings.base import plain
from ..settings.job import Job
from ..train.processes import decided
from ..train.trainer import Trainer
from . import checkpoints
from .checkpoints import About, Checkpoint, DamagedCheckpoint
from .dataset_record import difference
from .folder import FINISHED, RunFolder
from .jobs import OF_VALIDATION, job_of

AUTO, NEW = "auto", "new"
# Settings, or sections of them, that act on what comes after: they may be others when a run goes on.
MAY_CHANGE = (
    "name", "recipe", "steps", "epochs", "learning_rate", "checkpointing", "validation_items",
    "batch", "accumulate",  # as long as their product is the same
    "save", "checkpoints", "guard", "logs", "memory", "offload", "validation_loss.every", "validation_loss.per_image",
    "validation_loss.per_image_every", "optimizer.schedule", "optimizer.warmup", "optimizer.end", "optimizer.cycles",
    "optimizer.power", "optimizer.max_grad_norm", "ema.ema_export", "ema.ema_preview",
)  # fmt: skip
MODEL = ("flavour", "variant", "transformer", "text_encoder", "vae")  # the precision may change, to fit


@dataclass(frozen=True)
class Resumption:
    """An interrupted run to go on with: its state, and the files of newer checkpoints that cannot be read, with why."""

    folder: RunFolder
    checkpoint: Checkpoint
    state: dict
    damaged: dict[Path, str]

    def set_aside(self) -> Iterator[str]:
        """Rename what is damaged, so that nobody takes it for the run's last step. A sentence for each."""
        for path, why in self.damaged.items():
            aside = path.with_name(f"{path.name}.damaged")
            with suppress(OSError):
                path.replace(aside)
            yield (
                f"The checkpoint {path.name} of {self.folder.name} is damaged ({why}); going on from the one before. "
                f"It lies as {aside.name} in {aside.parent}."
            )


def find(trainer: Trainer, runs: Path, how: str | RunFolder) -> Resumption | None:
    """The run to go on with: with AUTO the last one of that name, unless it has finished, is in progress, or has no
    checkpoint; with NEW none; or the one that is given.

    Raises UserError where that run was asked for differently in what may not change, naming it.
    """
    if how == NEW:
        return None
    folder = RunFolder.last(runs, trainer.config.name) if how == AUTO else how
    if how == AUTO and (folder is None or folder.about().get("status") == FINISHED or folder.is_held()):
        return None
    found = newest(folder)
    if found is None and how == AUTO:
        return None
    if found is None:
        raise UserError(f"The run {folder.name} has no checkpoint that can be read in {folder.checkpoints}.")
    require_same(folder, found.checkpoint.about, trainer, own_seed=how == AUTO)
    return found


def find_together(trainer: Trainer, runs: Path, how: str | RunFolder) -> Resumption | None:
    """``find`` in the main process, and what it found in all of them."""
    mine: list[Resumption | None] = [None]

    def decide() -> Resumption | None:
        mine[0] = find(trainer, runs, how)
        return mine[0] and replace(mine[0], state={})  # which everyone reads for themselves

    told = decided(trainer.accelerator, decide)
    return mine[0] or (told and replace(told, state=told.checkpoint.load()))


def newest(folder: RunFolder) -> Resumption | None:
    """The last checkpoint that is whole, and what is wrong with those after it."""
    damaged = {}
    for path in reversed(checkpoints.paths(folder.checkpoints)):
        try:
            checkpoint = checkpoints.read(path)
            return Resumption(folder, checkpoint, checkpoint.load(), damaged)
        except DamagedCheckpoint as error:
            damaged[path] = str(error)
    return None


def require_same(folder: RunFolder, about: About, trainer: Trainer, own_seed: bool) -> None:
    """Raise UserError naming everything that differs and may not. ``own_seed`` goes on with the run's seed."""
    differing = list(differences(about, trainer, own_seed))
    if about.dataset != trainer.dataset.fingerprint:
        differing.append(difference(folder.dataset, trainer.dataset))
    if differing:
        raise UserError(
            f"The run {folder.name} was interrupted after step {about.step} and cannot go on, because "
            f"{'; '.join(differing)}. Put that back, or begin anew: set 'resume' to 'new' or choose another name."
        )


def differences(about: About, trainer: Trainer, own_seed: bool) -> Iterator[str]:
    """A clause for each setting that keeps a trainer from going on from a checkpoint."""
    now = plain(job_of(trainer))
    free = (*MAY_CHANGE, "seed") if own_seed else MAY_CHANGE
    was, others = dict(flat(about.job["training"])), dict(flat(now["training"]))
    for name in others:
        if name in was and was[name] != others[name] and not any(is_in(name, place) for place in free):
            yield f"{name} was {was[name]!r} and is {others[name]!r}"
    if about.step_size != trainer.step_size:
        yield f"a step had {_step(about.step_size, about.job)} and has {_step(trainer.step_size, now)}"
    for name in MODEL:
        if about.job["model"].get(name) != now["model"][name]:
            yield f"{name.replace('_', ' ')} was {about.job['model'].get(name)!r} and is {now['model'][name]!r}"
    had, has = (_of_training(job["unknown"]) for job in (about.job, now))
    if had != has:
        yield f"the graph had {had or 'nothing special'} and has {has or 'nothing special'}"


def _step(size: int, job: dict) -> str:
    """The images of a step in words: their number may not change, what it is a product of may."""
    batch, accumulate = job["training"]["batch"], job["training"]["accumulate"]
    processes = size // (batch * accumulate)
    words = f"batch {batch} x accumulate {accumulate} x {processes} process{'es' * (processes > 1)}"
    return f"{size} image{'s' * (size > 1)} ({words})"


def _of_training(unknown: list[str]) -> list[str]:
    """What no file can say of what is trained: previews may be others."""
    return [what for what in unknown if not what.startswith(OF_VALIDATION)]


def changed(about: About, job: Job) -> dict[str, list]:
    """What may change and has, by its name: [before, now]."""
    was, now = dict(flat(about.job["training"])), dict(flat(plain(job.training)))
    return {name: [was[name], now[name]] for name in now if name in was and was[name] != now[name]}


def flat(values: dict, place: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings by dotted name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def is_in(name: str, place: str) -> bool:
    """Whether a dotted name is that place or below it."""
    return name == place or name.startswith(f"{place}.")
