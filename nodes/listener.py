"""What LoRA Trainer says while it works, and what stays when it has ended; the panel of its run is web/run.js."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import fmean

from comfy.model_management import InterruptProcessingException

from ..flux2_train import events
from ..flux2_train.errors import Paused
from ..flux2_train.evaluate.verdicts import judge, summary
from ..flux2_train.runs.folder import RunFolder
from ..flux2_train.runs.folder import now as utc_now
from ..flux2_train.runs.results import Results
from ..flux2_train.train.trainer import Trainer
from .browser import live
from .browser.kept_graph import keep_graph
from .progress import CONSOLE_SECONDS, NodeProgress, clock

TEXT_SECONDS = 2.0
RECENT = 20  # steps whose mean duration says how long the rest takes


class TrainerListener:
    """Shows the events of one run on the node and in the console. ``now`` is what the run is doing."""

    def __init__(self, trainer: Trainer, progress: NodeProgress):
        self.trainer, self.progress = trainer, progress
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.validation: list[events.Validated] = []
        self.measured: list[events.ImagesMeasured] = []
        self.selectivity = self.best = ""
        self.now, self.plan, self.name = "", "", trainer.config.name
        self.folder = None
        self.said = self.logged = 0.0
        self.saved = ""

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Started(folder):
                self.name, self.folder = folder.name, RunFolder(folder)
                keep_graph(folder)
                self._begin()
            case events.Recorded():
                live.tell(self.folder, self.progress.node_id, event)
            case events.Planned(text):
                self.plan = text
                self.say()
            case events.Phase(text):
                self.say(text)
                self._log(text, always=not text[-1:].isdigit())
                self.progress.advance(len(self.trainer.history.losses))
            case events.Warned(text):
                self.warnings.append(text)
                logging.warning("%s: %s", self.name, text)
                self.say()
            case events.Resumed(step, total, path):
                self.notes.append(f"goes on after step {step} of {total} ({path.parents[1].name})")
                self._log(self.notes[-1], always=True)
            case events.Steered(step, text):
                self.notes.append(f"changed after step {step}: {text}")
                self.say()
            case events.Validated():
                self.validation.append(event)
            case events.SelectivityMeasured():
                self.selectivity = str(event)
            case events.BestSoFar():
                self.best = str(event)
            case events.ImagesMeasured():
                self.measured = [*self.measured[:1], event]
            case events.Previewed(step):
                self.progress.advance(step)
            case events.Stepped():
                self._stepped(event)
            case events.Saved(path, stopped=True):
                self.saved = path.name

    def _begin(self) -> None:
        """Note in the run's folder which node shows it."""
        with suppress(OSError):  # a full disk; the run itself says so
            live.begin(self.folder, self.progress.node_id, utc_now())

    def say(self, now: str | None = None) -> None:
        """Show what the run is doing, between the warnings and what is known so far."""
        self.now = self.now if now is None else now
        self.progress.say(self.text())

    def text(self) -> str:
        """Everything the node says: warnings first."""
        warnings = (f"warning: {warning}" for warning in self.warnings)
        return "\n".join(filter(None, (*warnings, self.now, *self.notes, *self._measured(), self.plan)))

    def finished(self, results: Results) -> str:
        """The text that stays."""
        self.now = f"{results.lora_path.name}: {results.certificate}"
        self._log(self.now, always=True)
        return self.text()

    def _stepped(self, event: events.Stepped) -> None:
        now, last = time.monotonic(), event.step == event.total
        left = (event.total - event.step) * fmean(self.trainer.history.seconds[-RECENT:] or [event.seconds])
        text = (
            f"step {event.step}/{event.total}, loss {event.smoothed:.4f}, {event.seconds:.2f} s/step, "
            f"{clock(left)} left"
        )
        if now - self.said >= TEXT_SECONDS or last:
            self.said = now
            self.say(text)
        self._log(text, always=last)
        self.progress.advance(event.step)

    @contextmanager
    def saying_how_it_ends(self) -> Iterator[None]:
        """If the block ends early, by Cancel or an error, the node says what was saved and how to go on."""
        try:
            yield
        except BaseException as error:
            with suppress(BaseException):  # the first one matters
                self.say(self._stopped(error))
                self._log(self.now, always=True)
            raise

    def _stopped(self, error: BaseException) -> str:
        if isinstance(error, Paused):
            return str(error)
        step, why = self.trainer.step, "" if isinstance(error, InterruptProcessingException) else " by an error"
        if not step:
            return f"Stopped{why} before the first step was done; nothing was saved."
        saved = f", saved as {self.saved}" if self.saved else ""
        goes_on = "Run goes on from here" if self.trainer.config.checkpoints.keep else "Checkpoints are off"
        return f"Stopped{why} after step {step}{saved}. {goes_on}."

    def _log(self, text: str, always: bool = False) -> None:
        """Print a line in the console, at most one every few seconds unless it must not be missed."""
        now = time.monotonic()
        if always or now - self.logged >= CONSOLE_SECONDS:
            self.logged = now
            logging.info("%s: %s", self.name, text)

    def _measured(self) -> list[str]:
        lines = []
        if len(self.validation) > 1:
            kind = "held-out" if self.validation[0].held_out else "validation"
            lines.append(f"{kind} loss {self.validation[0].loss:.4f} -> {self.validation[-1].loss:.4f}")
        lines += filter(None, (self.selectivity, self.best))
        if len(self.measured) > 1:
            lines += summary(judge(*(event.images for event in self.measured)))
        return lines


@contextmanager
def ending_as_interrupted() -> Iterator[None]:
    """A run that is paused ends ComfyUI's job as Cancel does: without an error, and the rest of the graph waits."""
    try:
        yield
    except Paused as paused:
        raise InterruptProcessingException from paused
