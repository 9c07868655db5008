"""Progress on a node: ComfyUI's bar, and text and picture in web/shown.js."""

from __future__ import annotations

import logging
import time

import comfy.model_management
import comfy.utils
from PIL import Image

from .browser.shown import picture_url, show

TEXT_SECONDS = 0.5
CONSOLE_SECONDS = 5.0


def clock(seconds: float) -> str:
    """A duration as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class NodeProgress:
    """The bar and the text of one node. Moving the bar raises ComfyUI's interrupt if the user has cancelled.

    We check that each time, because ComfyUI's bar itself does so only when it has moved by half a percent.
    """

    def __init__(self, node_id: str, total: int):
        self.node_id, self.total = node_id, total
        self.shown_at = 0.0
        self.bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def advance(self, value: int) -> None:
        self._move(value, self.total)

    def _move(self, value: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(value, total)

    def say(self, text: str, picture: Image.Image | None = None) -> None:
        """Show a text, and a picture in place of the last one."""
        show(self.node_id, text=text, **({"picture": picture_url(picture)} if picture is not None else {}))

    def phase(self, text: str, done: int, total: int) -> None:
        """Show how far one part of the work is, at most a few times a second."""
        self._move(done, total)
        now = time.monotonic()
        if done == total or now - self.shown_at >= TEXT_SECONDS:
            self.shown_at = now
            self.say(f"{text}: {done} of {total}")

    def counting(self, what: str):
        """Returns a function of (done, total) that shows items, rate and time left on the node and in the console."""
        started = logged = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal logged
            self._move(done, total)
            now = time.monotonic()
            if not done or (done < total and now - self.shown_at < TEXT_SECONDS):
                return
            self.shown_at = now
            rate = done / max(now - started, 1e-9)
            text = f"{done} of {total} {what}, {rate:.1f} per second, {clock((total - done) / rate)} left"
            self.say(text)
            if done == total or now - logged >= CONSOLE_SECONDS:
                logged = now
                logging.info("%s", text)

        return report
