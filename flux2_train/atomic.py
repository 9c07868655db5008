"""Atomic writing: readers find the old file or the complete new one, even if the process is killed while it writes.

A file is written under another name in the same folder and then renamed. A process that is killed meanwhile leaves the
file with that other name behind; ``sweep`` removes it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil

ENDING = ".partial"
# The names that ``replacing`` writes to: .FILE.PROCESS_TABLE-PROCESS-THREAD.partial
_NAME = re.compile(r"\..+\.(?P<table>[0-9a-f]{8})-(?P<process>\d+)-\d+\.partial", re.DOTALL)
# Names that older versions wrote to: of any file (without the process table), and of an entry of a cache.
_OLD_NAME = re.compile(r"\..+\.\d+\.partial|[0-9a-f]{32}\.\w+-\d+-\d+\.partial", re.DOTALL)
DAY = 86400.0  # seconds


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield the path to write to; at the end that file replaces ``path``. If anything fails ``path`` stays as it was.

    ``durable``: the file and its name are flushed to disk, so that they survive a power cut. Windows cannot flush a
    folder, so the new name may be lost there.
    """
    partial = path.with_name(f".{path.name}.{_process_table()}-{os.getpid()}-{threading.get_native_id()}{ENDING}")
    try:
        yield partial
        if durable:
            _flush(partial)
        os.replace(partial, path)
        if durable:
            _flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse it, and the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the partial files that killed processes left in ``folder`` (not below it); keep those still being written.

    A process id has a meaning only in its own process table: on this computer since it was started, in the same
    container. There a partial file is removed as soon as its process is gone; any other once it is a day old.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(ENDING)]
        for path in (folder / name for name in names):
            with contextlib.suppress(OSError):
                if _is_left_over(path):
                    path.unlink()


def _is_left_over(path: Path) -> bool:
    ours = _NAME.fullmatch(path.name)
    if ours and ours["table"] == _process_table() and not psutil.pid_exists(int(ours["process"])):
        return True
    return bool(ours or _OLD_NAME.fullmatch(path.name)) and time.time() - path.lstat().st_mtime > DAY


@cache
def _process_table() -> str:
    """An identity of this process table; other computers and containers may have the same host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux
        boot, space = str(uuid.getnode()), ""
    return hashlib.sha256("\n".join((socket.gethostname(), boot, space)).encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Replace a file by ``text`` in UTF-8, with its line ends unchanged."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


def write_table(path: Path, rows: Iterable[Iterable]) -> None:
    """Replace a file by rows as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())
