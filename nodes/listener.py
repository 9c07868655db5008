"""What LoRA Trainer shows while it works."""

from __future__ import annotations

import time

from PIL import Image

from ..flux2_train import events
from ..flux2_train.evaluate.plots import loss_plot
from ..flux2_train.evaluate.sheets import beside, stacked
from ..flux2_train.evaluate.verdicts import judge, summary
from ..flux2_train.train.trainer import Trainer
from .progress import NodeProgress

PREVIEW_SECONDS = 2.0


class TrainerListener:
    """Shows the events of one run as ComfyUI's bar, text and preview. ``text`` is what was shown last."""

    def __init__(self, trainer: Trainer, progress: NodeProgress):
        self.trainer, self.progress = trainer, progress
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.validation: list[events.Validated] = []
        self.measured: list[events.ImagesMeasured] = []
        self.pictures = None
        self.text, self.plan, self.drawn = "", "", 0.0

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Planned(text):
                self.plan = text
                self.say(self.text)
            case events.Phase(text):
                self.say(text)
                self.progress.advance(len(self.trainer.history.losses))
            case events.Warned(text):
                self.warnings.append(text)
            case events.Resumed(step, total, path):
                self.notes.append(f"goes on after step {step} of {total} ({path.parents[1].name})")
            case events.Validated():
                self.validation.append(event)
                self.text = self._describe()
            case events.ImagesMeasured():
                self.measured = [*self.measured[:1], event]
                self.text = self._describe()
            case events.Previewed(step, pictures):
                self.pictures = beside(step, pictures)
                self.progress.advance(step, self._picture())
            case events.Stepped():
                self._stepped(event)

    def say(self, text: str) -> None:
        """Show a text; the run's plan stays below it."""
        self.progress.say("\n".join(filter(None, (text, self.plan))))

    def _stepped(self, event: events.Stepped) -> None:
        now = time.monotonic()
        due = now - self.drawn >= PREVIEW_SECONDS or event.step == event.total
        if due:
            self.drawn, self.text = now, self._describe(event)
            self.say(self.text)
        self.progress.advance(event.step, self._picture() if due else None)

    def _picture(self) -> Image.Image:
        """The newest previews, base model beside LoRA, above the loss curve."""
        plot = loss_plot(self.trainer.history)
        return stacked(self.pictures, plot) if self.pictures else plot

    def _describe(self, event: events.Stepped | None = None) -> str:
        lines = [*self.warnings, *self.notes]
        if event:
            left = (event.total - event.step) * event.seconds
            lines.append(f"step {event.step}/{event.total}, loss {event.smoothed:.4f}, {event.seconds:.2f} s/step, "
                         f"{left / 60:.0f} min left")  # fmt: skip
        if len(self.validation) > 1:
            kind = "held-out" if self.validation[0].held_out else "validation"
            lines.append(f"{kind} loss {self.validation[0].loss:.4f} -> {self.validation[-1].loss:.4f}")
        if len(self.measured) > 1:
            lines += summary(judge(*(event.images for event in self.measured)))
        return "\n".join(lines)
