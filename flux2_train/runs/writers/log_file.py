"""What a run has said, as lines of text with their time, for whoever looks at it later."""

from __future__ import annotations

import time
from pathlib import Path

from ... import events
from ...names import escaped

MOST_BYTES = 1 << 20


class LogFile:
    """A listener that appends to ``log.txt`` everything but the single steps, until the file has MOST_BYTES."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, event: events.Event) -> None:
        text = line_of(event)
        if not text or (self.path.exists() and self.path.stat().st_size > MOST_BYTES):
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())} {escaped(text)}\n")


def line_of(event: events.Event) -> str:
    """An event in words; empty for one that needs no line, such as a step."""
    match event:
        case events.Started(folder):
            return f"begins in {folder.name}"
        case events.Resumed(step, total, path):
            return f"goes on after step {step} of {total}, from {path.name}"
        case events.Phase(text) if not text[-1:].isdigit():  # a count of many
            return text
        case events.Warned(text):
            return f"warning: {text}"
        case events.Validated(step, loss, held_out):
            return f"{'held-out' if held_out else 'validation'} loss {loss:.4f} after {step} steps"
        case events.SelectivityMeasured(step):
            return f"{event} after {step} steps"
        case events.BestSoFar():
            return str(event)
        case events.Previewed(step, pictures):
            return f"{len(pictures)} previews painted after {step} steps"
        case events.Checkpointed(step, _):
            return f"checkpoint after step {step}"
        case events.Saved(path, stopped):
            return f"saved as {path.name}{' (the run ended early)' if stopped else ''}"
    return ""
