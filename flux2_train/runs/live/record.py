"""What a run tells while it trains, as lines of JSON in its folder. docs/run-folder.md lists the kinds of lines.

A browser draws a run from these lines alone, whether they come one by one while it trains or from the file later.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ... import events
from ...bounded import from_json
from ...events import Event
from ...train.trainer import Trainer
from ..folder import RunFolder
from ..results import peak_memory

EVERY = 0.25  # seconds between two lines of steps, so that fast steps share a line
MEMORY_EVERY = 2.0
MOST_TEXT = 2000  # characters of a text
MOST_BYTES = 1 << 26  # of the file that are read
MOST_POINTS = 20_000  # steps that are given at once; of more, evenly chosen ones
CURVES = ("loss", "smoothed", "preservation", "seconds")


class Record:
    """A listener that writes ``record.jsonl``. ``unsent`` are the new lines that no listener has received yet."""

    def __init__(self, trainer: Trainer, folder: RunFolder):
        self.trainer, self.folder = trainer, folder
        self.unsent: list[events.Recorded] = []
        self.lines, self.whole = _lines_of(folder.record)
        self.steps: list[events.Stepped] = []
        self.last = self.measured = 0.0
        self.phase = ""  # without its digits: phases that only count on share a line too

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.Recorded | events.Completed):
            return
        now = time.monotonic()
        if isinstance(event, events.Stepped):
            self.steps.append(event)
            if now - self.last >= EVERY:
                self._write([], now)
            return
        if isinstance(event, events.Phase):
            counted = "".join(c for c in event.text if not c.isdigit())
            if counted == self.phase and now - self.last < EVERY:
                return
            self.phase = counted
        self._write([entry] if (entry := self._entry(event)) else [], now)

    def news(self) -> list[Event]:
        """What to tell now, each once."""
        news, self.unsent = self.unsent, []
        return news

    def close(self) -> None:
        """Write the steps that wait, and how the run has ended."""
        about = self.folder.about()
        how = {"status": about.get("status", ""), "why": str(about.get("why", ""))[:MOST_TEXT]}
        self._write([{"kind": "ended", **how, "total": self.trainer.total}], time.monotonic())

    def _write(self, entries: list[dict], now: float) -> None:
        steps, self.steps, self.last = self.steps, [], now
        if steps and now - self.measured >= MEMORY_EVERY:
            self.measured = now
            device = self.trainer.device
            used = {"kind": "memory", "used": peak_memory(device), "whole": device.type != "cuda"}
            entries = [used, *entries]
        entries = [*_batches(steps, self.trainer), *entries]
        if not entries:
            return
        text = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
        with self.folder.record.open("ab") as file:
            file.write(("" if self.whole else "\n").encode() + text.encode())
        self.whole = True
        first, self.lines = self.lines, self.lines + len(entries)
        self.unsent.append(events.Recorded(first, tuple(entries)))

    def _entry(self, event: Event) -> dict | None:
        match event:
            case events.Started():
                return {"kind": "began", "at": round(time.time()), "total": self.trainer.total}
            case events.Resumed(step, total):
                return {"kind": "resumed", "step": step, "total": total}
            case events.Phase(text):
                return {"kind": "phase", "text": text[:MOST_TEXT]}
            case events.Warned(text):
                helps = {name: list(found) for name in ("remedies", "pictures") if (found := getattr(event, name))}
                return {"kind": "warning", "text": text[:MOST_TEXT], **helps}
            case events.Planned(text):
                estimate = self.trainer.memory.plan.estimate
                parts = {name: int(size) for name, size in estimate.parts.items() if size}
                return {"kind": "plan", "text": text[:MOST_TEXT], "peak": int(estimate.peak), "parts": parts}
            case events.Steered(step, text):
                return {"kind": "steered", "step": step, "text": text[:MOST_TEXT], **self._now()}
            case events.Validated(step, loss, held_out):
                return {"kind": "validation", "step": step, "loss": _short(loss), "held_out": held_out}
            case events.SelectivityMeasured(step, taught, leaked):
                times = {"taught": _short(taught), "leaked": _short(leaked), "selectivity": _short(event.selectivity)}
                return {"kind": "selectivity", "step": step, **times}
            case events.BestSoFar(step, saved):
                return {"kind": "best", "step": step, **({"file": saved} if saved else {})}
            case events.Previewed(step, pictures):
                return {"kind": "preview", "step": step, "pictures": list(map(_picture, pictures, range(1, 1000)))}
            case events.Checkpointed(step):
                return {"kind": "checkpoint", "step": step}
            case events.Saved(path, stopped):
                return {"kind": "saved", "file": path.name, "stopped": stopped}
        return None

    def _now(self) -> dict:
        """What a change can change, as it is now."""
        previews = getattr(self.trainer.between_steps, "previews", None)
        prompts = [previews.prompts[number].text[:MOST_TEXT] for number in previews.shown] if previews else []
        return {"learning_rate": self.trainer.schedule.rates[0], "total": self.trainer.total, "prompts": prompts}


def read(folder: RunFolder, after: int = 0) -> tuple[list[dict], int]:
    """(lines behind the first ``after``, how many lines there are). Steps in a row are one line, thinned out if many.

    A line that cannot be read, as the last one of a killed process, is left out; a gap does no harm.
    """
    try:
        with folder.record.open("rb") as file:
            lines = file.read(MOST_BYTES).split(b"\n")[:-1]
    except OSError:
        return [], 0
    return list(_merged(_parsed(lines[after:]))), len(lines)


def _parsed(lines: list[bytes]) -> Iterator[dict]:
    for line in lines:
        try:
            entry = from_json(line.decode())
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
            yield entry


def _merged(entries: Iterator[dict]) -> Iterator[dict]:
    entries = list(entries)
    stride = -(-sum(len(each.get("loss", ())) for each in entries if each["kind"] == "steps") // MOST_POINTS) or 1
    for kind, group in groupby(entries, lambda entry: entry["kind"]):
        row = list(group)
        yield from [_joined(row, stride)] if kind == "steps" else row


def _joined(group: list[dict], stride: int) -> dict:
    """Lines of steps as one. A run that went back has some steps twice; the reader keeps the later ones."""
    numbers = [step for each in group for step in each.get("step") or _count(each)]
    curves = {name: [v for each in group for v in each.get(name) or [0] * len(each["loss"])] for name in CURVES}
    chosen = slice(None, None, stride)
    return {**group[-1], "step": numbers[chosen], **{name: values[chosen] for name, values in curves.items()}}


def _count(line: dict) -> range:
    return range(line["first"], line["first"] + len(line["loss"]))


def _batches(steps: list[events.Stepped], trainer: Trainer) -> Iterator[dict]:
    """One line for all steps in a row; a step that was left out begins another."""
    rates = trainer.history.rates or trainer.schedule.rates  # a run that goes back to its beginning has no history
    for _, row in groupby(enumerate(steps), lambda pair: pair[1].step - pair[0]):
        group = [step for _, step in row]
        line = {"kind": "steps", "first": group[0].step, "total": group[-1].total, "rate": rates[-1]}
        for name in CURVES:
            values = [_short(getattr(step, name)) for step in group]
            if any(values):
                line[name] = values
        yield {**line, "loss": line.get("loss", [0] * len(group))}


def _picture(picture: events.PreviewPicture, place: int) -> dict:
    asked = {name: picture.asked.get(name) for name in ("seed", "strength", "width", "height")}
    nearest = picture.nearest
    near = {"nearest": nearest.name[:MOST_TEXT], "distance": _short(nearest.distance)} if nearest else {}
    near |= {"copied": True} if nearest and nearest.copied else {}
    return {"number": picture.number or place, "label": picture.label[:MOST_TEXT], **asked, **near}


def _short(value: float) -> float | None:
    """Five digits are more than a chart shows; JSON has no infinity."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _lines_of(path: Path) -> tuple[int, bool]:
    """How many lines a file has, and whether the last one is whole."""
    try:
        text = path.read_bytes()
    except OSError:
        return 0, True
    return text.count(b"\n") + (not text.endswith(b"\n") and bool(text)), text.endswith(b"\n") or not text
