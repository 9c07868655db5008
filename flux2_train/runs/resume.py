"""Decides whether a run resumes an earlier one, from which checkpoint, and which settings may have changed since."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..host.system.memory import is_out_of_memory
from ..names import same_file
from ..safetensors_header import CONTENT
from ..settings.base import plain
from ..settings.job import Job
from ..train import packing
from ..train.processes import decided
from ..train.schedules import factor
from ..train.trainer import Trainer
from . import checkpoints
from .checkpoints import About, Checkpoint, DamagedCheckpoint
from .dataset_record import difference
from .folder import FINISHED, RunFolder
from .graph_job import OF_VALIDATION, job_of
from .live.steering import changes_of

AUTO, NEW = "auto", "new"
SAME_RATE = 1e-9  # relative difference of two learning rates that are one
# Settings, or sections of them, that may have changed when a run is resumed: they act on the steps to come alone.
MAY_CHANGE = (
    "name", "recipe", "steps", "epochs", "learning_rate", "checkpointing", "validation_items",
    "batch", "accumulate", "processes",  # as long as their product is the same
    "save", "checkpoints", "guard", "logs", "memory", "offload", "validation_loss.every", "validation_loss.selectivity",
    "validation_loss.per_image", "validation_loss.per_image_every", "optimizer.schedule", "optimizer.warmup",
    "optimizer.end", "optimizer.cycles", "optimizer.power", "optimizer.max_grad_norm", "ema.ema_export",
    "ema.ema_preview",
)  # fmt: skip
# What may differ from a finished run that is made longer: more steps, and what changes nothing that is learned.
LONGER = (
    "name", "recipe", "steps", "epochs", "checkpointing", "validation_items", "batch", "accumulate", "processes",
    "save", "checkpoints", "logs", "memory", "offload", "validation_loss", "ema.ema_export", "ema.ema_preview",
)  # fmt: skip
MODEL = ("flavour", "variant", "transformer", "text_encoder", "vae")  # the precision may change, so that the model fits
FILES = ("transformer", "text_encoder", "vae", "adapter.start_from")  # settings that name a file


@dataclass(frozen=True)
class Resumption:
    """The state from which a run is resumed. ``damaged`` says what is wrong with each newer checkpoint."""

    folder: RunFolder
    checkpoint: Checkpoint
    state: dict
    damaged: dict[Path, str]

    def set_aside(self) -> Iterator[str]:
        """Rename the damaged checkpoints, so that nothing takes them for the run's last step. Yields a warning each."""
        for path, why in self.damaged.items():
            new_path = path.with_name(f"{path.name}.damaged")
            with suppress(OSError):
                path.replace(new_path)
            yield (
                f"The checkpoint {path.name} of {self.folder.name} is damaged ({why}); going on from the one before. "
                f"It lies as {new_path.name} in {new_path.parent}."
            )


def find(trainer: Trainer, runs: Path, how: str | RunFolder) -> Resumption | None:
    """The run to resume, ``None`` to begin a new one.

    ``how`` is NEW for a new run; AUTO for the newest run of the trainer's name, unless that is being trained, has no
    checkpoint, or has finished and cannot be made longer; or the folder of a run. Raises UserError that names every
    setting that differs from that run's and may not.
    """
    if how == NEW:
        return None
    folder = RunFolder.last(runs, trainer.config.name) if how == AUTO else how
    if how == AUTO and (folder is None or folder.is_held()):
        return None
    if how == AUTO and folder.about().get("status") == FINISHED:
        last = newest(folder)
        grows = last is not None and last.checkpoint.about.step < trainer.total
        return last if grows and not _against_longer(last, trainer) else None
    resumption = newest(folder)
    if resumption is None and how == AUTO:
        return None
    if resumption is None:
        raise UserError(f"The run {folder.name} has no checkpoint that can be read in {folder.checkpoints}.")
    require_same(folder, resumption.checkpoint.about, trainer, own_seed=how == AUTO)
    return resumption


def find_together(trainer: Trainer, runs: Path, how: str | RunFolder) -> Resumption | None:
    """Call ``find`` in the main process, and return its answer in every process."""
    in_main: list[Resumption | None] = [None]

    def decide() -> Resumption | None:
        in_main[0] = find(trainer, runs, how)
        return in_main[0] and replace(in_main[0], state={})  # each process reads the state from the file itself

    sent = decided(trainer.accelerator, decide)
    return in_main[0] or (sent and replace(sent, state=sent.checkpoint.load()))


def restored(trainer: Trainer, runs: Path, how: str | RunFolder) -> Resumption | None:
    """Call ``find_together``, and give the trainer the state.

    A checkpoint whose sums are right and whose content is not that of this trainer is damaged too: the one before it
    counts. Raises UserError as ``find``.
    """
    resumption, given = find_together(trainer, runs, how), trainer.changes
    while resumption:
        trainer.changes = changes_of(trainer, resumption.folder, resumption.checkpoint.about.job)
        why = put(trainer, resumption.state)
        if not why:
            return resumption
        folder, path = resumption.folder, resumption.checkpoint.path
        if trainer.accelerator.num_processes > 1:
            raise UserError(f"The checkpoint {path} cannot be used ({why}): remove it, and queue again.")
        resumption = newest(folder, {**resumption.damaged, path: why})
        if resumption is None and how != AUTO:
            raise UserError(f"The run {folder.name} has no checkpoint that can be used in {folder.checkpoints}.")
    trainer.changes = given
    return None


def put(trainer: Trainer, state: dict) -> str:
    """Give a trainer a state. Returns why that cannot be, in words, and then the trainer has the state it had."""
    before = packing.copied(trainer.state_dict())
    try:
        _require_alike(state, before)
        trainer.load_state_dict(state)
    except CONTENT as error:
        if is_out_of_memory(error):
            raise
        trainer.load_state_dict(before)
        return f"its content does not fit this run: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def _require_alike(state: dict, own: dict) -> None:
    """Raise ValueError unless a state's numbers are of the kinds, and its weights of the shapes, of a trainer's own."""
    for name in ("step", "drawn", "seed", "scheduled"):
        if type(state[name]) is not type(own[name]):
            raise ValueError(f"{name} is {type(state[name]).__name__}")
    shapes = [{name: tuple(tensor.shape) for name, tensor in each["adapter"].items()} for each in (state, own)]
    if shapes[0] != shapes[1]:
        raise ValueError("its weights have other shapes")


def newest(folder: RunFolder, damaged: dict[Path, str] | None = None) -> Resumption | None:
    """The newest checkpoint that can be read, and what is wrong with those after it; ``None`` if there is none.

    ``damaged`` are those that are known to be.
    """
    damaged = dict(damaged or {})
    for path in reversed(checkpoints.paths(folder.checkpoints)):
        if path in damaged:
            continue
        try:
            checkpoint = checkpoints.read(path)
            _require_job(checkpoint.about.job)
            return Resumption(folder, checkpoint, checkpoint.load(), damaged)
        except DamagedCheckpoint as error:
            damaged[path] = str(error)
    return None


def why_anew(trainer: Trainer, runs: Path) -> str:
    """Why a finished run with fewer steps is not made longer, empty if that is not asked for."""
    folder = RunFolder.last(runs, trainer.config.name)
    if folder is None or folder.is_held() or folder.about().get("status") != FINISHED:
        return ""
    last = newest(folder)
    if last is None or last.checkpoint.about.step >= trainer.total:
        return ""
    against = _against_longer(last, trainer)
    return against and (
        f"The finished run {folder.name} of {last.checkpoint.about.step} steps is not made longer, because {against}: "
        "training begins anew."
    )


def _against_longer(last: Resumption, trainer: Trainer) -> str:
    """What keeps a trainer of more steps from going on where a finished run ended, empty if nothing does."""
    about = last.checkpoint.about
    differing = list(_differing(last.folder, about, trainer, own_seed=False, changeable=LONGER))
    routing = trainer.config.routing
    if routing.routes and (routing.until < 100 or routing.ramp):
        differing.append("token routing's until and ramp are percentages of all steps")
    if not differing and not _has_same_rates(last.state["history"]["rates"].tolist(), trainer):
        options = trainer.config.optimizer
        differing.append(
            f"the learning rate (schedule '{options.schedule}', warmup {options.warmup:g}) would have been another one "
            f"in its steps if there had been {trainer.total} of them"
        )
    return "; ".join(differing)


def _has_same_rates(rates: list[float], trainer: Trainer) -> bool:
    schedule = trainer.schedule
    wanted = [schedule.rates[0] * factor(step, schedule.total, schedule.config) for step in range(len(rates))]
    return all(math.isclose(was, now, rel_tol=SAME_RATE) for was, now in zip(rates, wanted, strict=True))


def _require_job(job: dict) -> None:
    """Raise DamagedCheckpoint unless the parts of a job that are compared are there."""
    sections = [job.get(name) for name in ("training", "model")]
    if not all(isinstance(section, dict) for section in sections) or not isinstance(job.get("unknown"), list):
        raise DamagedCheckpoint("it holds no job")


def require_same(folder: RunFolder, about: About, trainer: Trainer, own_seed: bool) -> None:
    """Raise UserError that names every difference that is not allowed.

    With ``own_seed`` the seed may differ: the run keeps its own.
    """
    differing = list(_differing(folder, about, trainer, own_seed))
    if differing:
        raise UserError(
            f"The run {folder.name} was interrupted after step {about.step} and cannot go on, because "
            f"{'; '.join(differing)}. Put that back, or begin anew: set 'resume' to 'new' or choose another name."
        )


def _differing(
    folder: RunFolder, about: About, trainer: Trainer, own_seed: bool, changeable: tuple[str, ...] = MAY_CHANGE
) -> Iterator[str]:
    """``differences``, and what differs in the data set."""
    yield from differences(about, trainer, own_seed, changeable)
    if about.dataset != trainer.dataset.fingerprint:
        yield difference(folder.dataset, trainer.dataset)


def differences(
    about: About, trainer: Trainer, own_seed: bool, changeable: tuple[str, ...] = MAY_CHANGE
) -> Iterator[str]:
    """A clause for each setting because of which a trainer cannot resume from a checkpoint."""
    now = plain(job_of(trainer))
    changeable = (*changeable, "seed") if own_seed else changeable
    was, is_now = dict(flat(about.job["training"])), dict(flat(now["training"]))
    for name in is_now:
        if (
            name in was
            and not _alike(name, was[name], is_now[name])
            and not any(is_in(name, place) for place in changeable)
        ):
            yield f"{name} was {was[name]!r} and is {is_now[name]!r}"
    if about.step_size != trainer.step_size:
        yield f"a step had {_step(about.step_size, about.job)} and has {_step(trainer.step_size, now)}"
    elif about.job["training"]["batch"] != now["training"]["batch"] and any(s.batch for s in trainer.dataset.sources):
        yield "a folder has a batch of its own, so batch and accumulate may not change for one another"
    for name in MODEL:
        if not _alike(name, about.job["model"].get(name), now["model"][name]):
            yield f"{name.replace('_', ' ')} was {about.job['model'].get(name)!r} and is {now['model'][name]!r}"
    had, has = (_of_training(job["unknown"]) for job in (about.job, now))
    if had != has:
        yield f"the graph had {had or 'nothing special'} and has {has or 'nothing special'}"


def _alike(name: str, was: object, now: object) -> bool:
    """Whether a setting is the same."""
    return was == now or (name in FILES and isinstance(was, str) and same_file(was, str(now)))


def _step(size: int, job: dict) -> str:
    """The images of a step in words: their number may not change, but its factors may."""
    batch, accumulate = job["training"]["batch"], job["training"]["accumulate"]
    processes = size // (batch * accumulate)
    words = f"batch {batch} x accumulate {accumulate} x {processes} process{'es' * (processes > 1)}"
    return f"{size} image{'s' * (size > 1)} ({words})"


def _of_training(unknown: list[str]) -> list[str]:
    """The unknown things that training depends on; those of previews may differ."""
    return [what for what in unknown if not what.startswith(OF_VALIDATION)]


def changed(about: About, job: Job) -> dict[str, list]:
    """The settings that have changed since the checkpoint, by name: [before, now]."""
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
