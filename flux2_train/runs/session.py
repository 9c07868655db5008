"""One run from its folder to its LoRA: new or resumed, and saved on every way out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..atomic import write_text
from ..data.order import epoch_batches
from ..errors import Paused, UserError
from ..events import Completed, Event, Phase, Planned, Resumed, Saved, Started, Steered, Warned
from ..host.system.memory import free, is_out_of_memory
from ..settings.base import plain
from ..train import processes
from ..train.trainer import Trainer
from . import checkpoints, dataset_record, logs, resume, reuse
from .best_effort import BestEffort, could_not
from .checkpoint_writer import CheckpointWriter
from .checkpoints import About, Snapshot
from .folder import FAILED, FINISHED, PAUSED, RUNNING, STOPPED, RunFolder, now
from .graph_job import job_of, output_of
from .live.record import Record
from .live.steering import FolderRequests
from .loras import new_folder, note_stopped, remove_stopped, set_aside
from .results import Results, write_results
from .rewind import Rewind
from .room import require_room
from .shutdown import saved_at_exit
from .writers.best_lora import rank_of, restore_best, with_best
from .writers.image_files import ImageFiles
from .writers.log_file import LogFile
from .writers.preview_files import PreviewFiles, save_references
from .writers.step_loras import StepLoras

Written = TypeVar("Written")
Listen = Callable[[Event], None]


def train(
    trainer: Trainer, loras: Path, runs: Path, listen: Listen, how: str | RunFolder = resume.NEW
) -> Results | None:
    """Train to the end and write the results. The main process returns them, the others return ``None``.

    ``how`` is ``resume.NEW``, ``resume.AUTO`` or the run to resume; with AUTO an identical finished run is reused. The
    run's folder and its job.json exist before the first step. If training ends early, also by an exception of
    ``listen``, a checkpoint and the LoRA are saved first.
    """
    logs.require_installed(trainer.config.log_writers)
    done = reuse.finished(trainer, loras, runs) if how == resume.AUTO and trainer.is_main else None
    if processes.any_of(trainer.accelerator, bool(done)):
        return done and _reused(done, listen)
    resumption = resume.restored(trainer, runs, how)
    anew = resume.why_anew(trainer, runs) if how == resume.AUTO and trainer.is_main and not resumption else ""
    try:
        if not trainer.is_main:
            _work(trainer)
            return None
        notes = [*require_room(trainer, loras, runs), *([] if resumption else dataset_record.since_last(trainer, runs))]
        folder = resumption.folder if resumption else new_folder(trainer, loras, runs)
        with folder.held() as unlocked:
            RunFolder.sweep_all(folder.path.parent)
            session = Session(trainer, folder, loras, listen, resumption, [anew, unlocked, *notes])
            with saved_at_exit(session.save_at_once):
                return session.run()
    finally:
        trainer.release()
        free()


def _reused(done: Results, listen: Listen) -> Results:
    listen(Started(done.folder))
    listen(Phase(f"{done.folder.name} is trained already, from the same data and settings"))
    listen(Saved(done.lora_path, stopped=False))
    return done


def _work(trainer: Trainer) -> None:
    with closing(trainer.run()) as run:
        for _ in run:
            pass


class Session:
    """A run in the process that writes its files, resumed if ``resumption`` is given. The caller holds the folder."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        loras: Path,
        listen: Listen,
        resumption: resume.Resumption | None = None,
        notes: Iterable[str] = (),
    ):
        self.trainer, self.folder, self.loras, self.listen, self.resumption = trainer, folder, loras, listen, resumption
        self.damaged = tuple(resumption.set_aside()) if resumption else ()  # before CheckpointWriter lists checkpoints
        self.notes = [*filter(None, notes), *self.damaged]  # to be told once the run has begun
        self.begun = False
        self.first_step = trainer.step
        save = partial(save_references, trainer.previews, folder)
        job = job_of(trainer, self._beside("The reference images", save, ()))
        self.job = replace(job, output=output_of(loras, folder.path.parent))
        previews, images = PreviewFiles(folder), ImageFiles(folder)
        writers = {"The previews": previews, "The losses of single images": images, "The plan": self._note_plan}
        writers |= {"A LoRA file on the way": StepLoras(trainer, folder, loras), "The log": LogFile(folder.log)}
        self.record = Record(trainer, folder)
        writers |= {"job.json": self._note_changes, "The record": self.record}
        # the files come first: listen may end the run
        self.listeners = [*(BestEffort(write, what, listen) for what, write in writers.items()), listen]
        order = epoch_batches(trainer.samples, trainer.step_size, trainer.config.seed, 0, trainer.batches_of_step)
        config, rank = trainer.config.checkpoints, rank_of(trainer)
        self.checkpoint_writer = CheckpointWriter(folder.checkpoints, config, len(order), self.snapshot, rank)
        trainer.requests = FolderRequests(trainer, folder, self.checkpoint_writer)

    def run(self) -> Results:
        """See ``train``."""
        self._begin()
        try:
            try:
                with self._logs():
                    self._train()
                self._tell(*self.checkpoint_writer.now(self.trainer.step))
            except BaseException as error:  # ComfyUI's interrupt and Ctrl-C are no Exceptions
                self._rescue(error)
                raise
            if self.trainer.pausing and self.trainer.step < self.trainer.total:
                raise self._paused()
            return self._finish()
        finally:
            self.checkpoint_writer.close()
            self._attempt("the record", self.record.close)
            self._quietly(*self.record.news())

    def snapshot(self) -> Snapshot:
        """A copy of the run as it is now, on the host."""
        trainer = self.trainer
        about = About(
            trainer.step,
            trainer.total,
            plain(self.job),
            trainer.dataset.fingerprint,
            trainer.step_size,
            trainer.history.validation.get(trainer.step),
        )
        return Snapshot.of(about, trainer.state_dict())

    def _begin(self) -> None:
        about = self.folder.about()
        resumed = about.get("resumed", [])
        if self.resumption:
            changed = resume.changed(self.resumption.checkpoint.about, self.job)
            resumed = [*resumed, {"step": self.trainer.step, "at": now(), "changed": changed}]
        listed = json.dumps(dataset_record.listed(self.trainer.dataset), indent=1) + "\n"
        state = {"status": RUNNING, "step": self.trainer.step, "total": self.trainer.total}
        state |= {"began": about.get("began", now()), "resumed": resumed, "why": "", "name": self.trainer.config.name}
        self._beside("run.json", lambda: self.folder.note(**state))
        self._beside("job.json", lambda: write_text(self.folder.job, self.job.to_json()))
        self._beside("dataset.json", lambda: write_text(self.folder.dataset, listed))

    def _beside(self, what: str, write: Callable[[], Written], instead: Written | None = None) -> Written | None:
        """What ``write`` returns; a disk that is full or closed is told and does not end the run."""
        try:
            return write()
        except OSError as error:
            text = could_not(what, error)
            if self.begun:
                self._tell(Warned(text))
            else:
                self.notes.append(text)
            return instead

    def _train(self) -> None:
        self.begun = True
        self._tell(Started(self.folder.path), *map(Warned, self.notes))
        if self.resumption:
            self._tell(Resumed(self.trainer.step, self.trainer.total, self.resumption.checkpoint.path))
        rewind = Rewind(self.trainer, self.folder, self.checkpoint_writer)
        while not self._trained_to_the_end(rewind):
            self._tell(*rewind.back())

    def _trained_to_the_end(self, rewind: Rewind) -> bool:
        """Run all steps that are left. False if memory ran out in one of them and ``rewind`` can help."""
        try:
            with closing(self.trainer.run()) as run:
                for event in run:
                    self._tell(event)
                    if isinstance(event, Completed):
                        self._tell(
                            *self.checkpoint_writer.after(event.step, self.trainer.history.validation.get(event.step))
                        )
        except Exception as error:
            if not rewind.helps(error):
                raise
            return False
        return True

    @contextmanager
    def _logs(self) -> Iterator[None]:
        """The logs of the settings get every event inside the block, and are closed after it."""
        config = self.trainer.config
        opened = []
        for name in config.log_writers:
            log = self._beside(
                f"The log for {name}", partial(logs.open_log, name, config, self.folder, self.trainer.step)
            )
            opened += [BestEffort(log, f"The log for {name}", self.listen)] if log else []
        others, self.listeners = self.listeners, [*opened, *self.listeners]
        try:
            with ExitStack() as closing_all:
                for log in opened:
                    closing_all.callback(log.close)
                yield
        finally:
            self.listeners = others

    def _tell(self, *events: Event) -> None:
        for event in events:
            for listener in self.listeners:
                listener(event)
            for news in self.record.news():
                self.listen(news)

    def _note_plan(self, event: Event) -> None:
        if isinstance(event, Planned):
            write_text(self.folder.plan, event.text + "\n")

    def _note_changes(self, event: Event) -> None:
        if isinstance(event, Steered):
            self.job = replace(self.job, changes=self.trainer.changes)
            write_text(self.folder.job, self.job.to_json())

    def _paused(self) -> Paused:
        """Note that the run is paused; without its checkpoint the LoRA is saved, as after an interruption."""
        step = self.trainer.step
        paused = Paused(step, saved=step in map(checkpoints.step_of, self.checkpoint_writer.written))
        if not paused.saved:
            self._attempt("the LoRA", self._save_lora)
        self._beside(
            "run.json",
            lambda: self.folder.note(status=PAUSED, step=step, total=self.trainer.total, ended=now(), why=str(paused)),
        )
        return paused

    def _finish(self) -> Results:
        plateau = self.trainer.plateau.reached(self.trainer.history.validation)
        if plateau:
            self._tell(*restore_best(self.trainer, self.checkpoint_writer.best_path()))
        ended = {"step": self.trainer.step, "total": self.trainer.total, "ended": now()}
        try:
            set_aside(self.folder, self.loras, self.trainer.config.save.format)
            last = write_results(self.trainer, self.loras, self.folder, beside=self._beside)
            best = self.checkpoint_writer.best_path()
            saved = (last, []) if plateau else with_best(self.trainer, self.loras, self.folder, best, last)
            results, events = saved  # on a plateau the last one is the best already
            self._tell(*events)
        except BaseException as error:  # the last checkpoint exists: queueing again only repeats the saving
            ended["why"] = _reason(error)
            self._attempt("run.json", lambda: self.folder.note(status=FAILED, **ended))
            raise
        ended["lora"] = last.lora_path.relative_to(self.loras).as_posix()
        self._beside("run.json", lambda: self.folder.note(status=FINISHED, **ended))
        self.checkpoint_writer.prune(1)
        self._beside("run.json", lambda: remove_stopped(self.folder, self.loras))
        self._tell(Saved(results.lora_path, stopped=False))
        return results

    def _rescue(self, error: BaseException) -> None:
        """Save what was trained. A failure here is a warning and does not hide ``error``."""
        self._attempt("the checkpoint", self._save_checkpoint)
        self._attempt("the LoRA", self._save_lora)
        status = FAILED if isinstance(error, Exception) else STOPPED
        note = {"status": status, "step": self.trainer.step, "ended": now(), "why": _reason(error)}
        self._attempt("run.json", lambda: self.folder.note(**note))
        if is_out_of_memory(error):
            raise UserError(self._out_of_memory()) from error

    def _save_checkpoint(self) -> None:
        if self.trainer.half_updated:
            self._quietly(Warned("The last step was cut short while it changed the weights: it is not saved."))
        elif self.trainer.step:
            self._quietly(*self.checkpoint_writer.now(self.trainer.step))

    def _save_lora(self) -> None:
        if self.trainer.history.losses and self.trainer.step > self.first_step:
            results = write_results(self.trainer, self.loras, self.folder, stopped=True, beside=self._beside_quietly)
            note_stopped(self.folder, self.loras, results.lora_path)
            self._quietly(Saved(results.lora_path, stopped=True))

    def _beside_quietly(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._quietly(Warned(could_not(what, error)))

    def save_at_once(self) -> None:
        """Save the state after the last whole step, from another thread, because the process ends.

        A step in progress is not waited for; an update in progress is.
        """
        with self.trainer.of_no_step:
            if self.trainer.step == 0 or self.trainer.half_updated or self.trainer.config.checkpoints.keep == 0:
                return
            snapshot = self.snapshot()
        snapshot.write(self.folder.checkpoints)
        self.folder.note(status=STOPPED, step=snapshot.about.step, ended=now(), why="the program was ended")

    def _attempt(self, what: str, save: Callable[[], None]) -> None:
        try:
            save()
        except Exception as error:
            logging.warning("%s of the run %s could not be saved: %s", what, self.folder.name, error)
            self._quietly(Warned(f"{what} could not be saved: {error}"))

    def _quietly(self, *events: Event) -> None:
        """Pass events to the listener, whose own exception may be ending the run. What it raises now is ignored."""
        for event in events:
            with suppress(BaseException):
                self.listen(event)

    def _out_of_memory(self) -> str:
        kept = max(map(checkpoints.step_of, self.checkpoint_writer.written), default=0)
        saved = f"step {kept} is saved, and queueing again goes on from there" if kept else "nothing is saved yet"
        return (
            f"The card ran out of memory in step {self.trainer.step + 1}; {saved}. Close other programs, turn "
            "checkpointing on, lower batch and raise accumulate alike, or begin anew with a lower resolution or rank."
        )


def _reason(error: BaseException) -> str:
    cancelled = not isinstance(error, Exception)  # ComfyUI's Cancel, Ctrl+C: neither of them says anything
    return str(error) or ("cancelled" if cancelled else type(error).__name__)
