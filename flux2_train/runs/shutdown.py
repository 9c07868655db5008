"""Saves the runs in progress when their process ends: Ctrl-C in ComfyUI's window, closing it, or a service's stop.

ComfyUI trains in a thread that dies with the process, in the middle of a step. What is saved is the state after the
last whole step, at once: a step of a large model takes longer than a system waits for a process to end.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = ("SIGTERM", "SIGHUP")  # which by default end a process without a word to it
CLOSING = (2, 5, 6)  # Windows' events: the window is closed, the user logs off, the computer shuts down
_running: list[Callable[[], None]] = []
_kept: list[object] = []  # what Windows calls must not be collected


@contextmanager
def saved_at_exit(save: Callable[[], None]) -> Iterator[None]:
    """``save`` is called if the process ends inside the block, from another thread than the one that runs it."""
    _running.append(save)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # it was called
            _running.remove(save)


def save_all() -> None:
    """Save every run in progress, once."""
    while _running:
        save = _running.pop()
        try:
            save()
        except Exception as error:  # the process ends in any case
            logging.warning("A run could not be saved while the program ends: %s", error)


def save_when_it_ends() -> None:
    """From now on save the runs in progress before the process ends. Call in the main thread.

    Handlers of signals that somebody else has set are left alone.
    """
    atexit.register(save_all)
    if sys.platform == "win32":
        _save_when_windows_closes()
    for name in SIGNALS:
        number = getattr(signal, name, None)
        with contextlib.suppress(ValueError):  # another thread than the main one
            if number and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _save_and_end)


def _save_and_end(number: int, frame: object) -> None:
    for name in SIGNALS:  # a closed terminal sends both, and some programs send one twice: the saving is not cut short
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    save_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _save_when_windows_closes() -> None:
    """Windows gives a process five seconds after it closed its console, and calls this in a thread of its own."""
    import ctypes

    @ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)
    def closing(event: int) -> int:
        if event in CLOSING:
            save_all()
        return 0

    _kept.append(closing)
    ctypes.windll.kernel32.SetConsoleCtrlHandler(closing, 1)
