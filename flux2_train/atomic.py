"""Files that are there whole or not at all, whoever looks and whenever the process ends.

A file is written under another name beside its place and renamed into it. A process that is killed meanwhile leaves the
file of that other name behind, which ``sweep`` removes.
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
# What ``whole`` writes to: file, process table, process, thread.
_NAME = re.compile(r"\..+\.(?P<table>[0-9a-f]{8})-(?P<process>\d+)-\d+\.partial", re.DOTALL)
# What older versions wrote to: any file (without the computer) and an entry of a cache.
_OLD_NAME = re.compile(r"\..+\.\d+\.partial|[0-9a-f]{32}\.\w+-\d+-\d+\.partial", re.DOTALL)
DAY = 86400.0  # seconds


@contextmanager
def whole(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield where to write a file that takes the place of ``path`` at the end; if anything fails, nothing is left.

    ``durable``: the file and its name are on disk at the end, as far as the operating system can say: they are there
    after a power cut too. Windows flushes no folder, so there the name may be lost with the file behind it whole.
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
    """Remove what killed processes left half written in ``folder`` itself, and nothing that may still be written.

    A process id says something only where that process would be seen: in the same process table, that is, on this
    computer since it was started, in the same container. What came from elsewhere is removed once it is a day old.
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
    """What tells this process table from those of other computers and containers, which may have the same host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux
        boot, space = str(uuid.getnode()), ""
    return hashlib.sha256("\n".join((socket.gethostname(), boot, space)).encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, with the line ends that ``text`` has."""
    with whole(path) as partial:
        partial.write_bytes(text.encode())


def write_table(path: Path, rows: Iterable[Iterable]) -> None:
    """Write rows as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())
