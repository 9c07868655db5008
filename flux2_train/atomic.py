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
import shutil
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
# The names that ``replacing`` and ``apart`` write to: .FILE.PROCESS_TABLE-PROCESS-THREAD.partial
_NAME = re.compile(r"\..+\.(?P<table>[0-9a-f]{8})-(?P<process>\d+)-\d+\.partial", re.DOTALL)
# Names that older versions wrote to: of any file (without the process table), and of an entry of a cache.
_OLD_NAME = re.compile(r"\..+\.\d+\.partial|[0-9a-f]{32}\.\w+-\d+-\d+\.partial", re.DOTALL)
_LIBRARYS_NAME = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # to which the safetensors library writes
_KEPT = 100  # bytes of a file's name that are repeated in its partial name: file systems take 255 in all
DAY = 86400.0  # seconds


@contextmanager
def replacing(path: Path, durable: bool = False, new: bool = False) -> Iterator[Path]:
    """Yield the path to write to; at the end that file replaces ``path``. If anything fails ``path`` stays as it was.

    ``durable``: the file and its name are flushed to disk, so that they survive a power cut. Windows cannot flush a
    folder, so the new name may be lost there. ``new``: raises FileExistsError instead of replacing, also if the file
    has appeared only while this one was written.
    """
    partial = _partial(path)
    try:
        yield partial
        _finish(partial, path, durable, new)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def apart(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which is removed at the end, or by ``sweep`` if the process is killed.

    For files that are looked at before they get their name, and for writers that make other files beside the one they
    were told to write, as the safetensors library does. ``move`` then gives the file its place.
    """
    folder = _partial(path)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move(written: Path, path: Path, durable: bool = False, new: bool = False) -> None:
    """Give a file, or with ``new`` also a folder, that was written ``apart`` its place, as ``replacing`` does."""
    _finish(written, path, durable, new)


def _partial(path: Path) -> Path:
    name = path.name.encode(errors="surrogateescape")[:_KEPT].decode(errors="ignore")
    return path.with_name(f".{name}.{own_name()}{ENDING}")


def own_name() -> str:
    """A name of this thread that no other one has at the same time, on this computer or on another."""
    return f"{_process_table()}-{os.getpid()}-{threading.get_native_id()}"


def has_ended(name: str) -> bool:
    """Whether ``own_name`` named a thread of a process of this computer that has ended. False if nobody can tell."""
    table, _, rest = name.partition("-")
    process = rest.partition("-")[0]
    return table == _process_table() and process.isdigit() and not psutil.pid_exists(int(process))


def _finish(partial: Path, path: Path, durable: bool, new: bool) -> None:
    if durable:
        _flush(partial)
    if new:
        _rename_to_new(partial, path)
    else:
        os.replace(partial, path)
    if durable:
        _flush_folder(path.parent)


def _rename_to_new(partial: Path, path: Path) -> None:
    """Rename a file or folder. Raises FileExistsError if ``path`` exists, also if it has appeared only now."""
    if sys.platform == "win32":
        os.rename(partial, path)  # which never replaces there
    elif partial.is_dir():
        path.mkdir()
        os.rename(partial, path)  # replaces the empty folder, which is ours
    else:
        _link_to_new(partial, path)


def _link_to_new(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no second names, as FAT: an empty file holds the place
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(partial, path)
    else:
        partial.unlink()


def _flush(path: Path) -> None:
    for file_path in [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]:
        with file_path.open("rb+") as file:
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
    """Remove what killed processes left half written in ``folder`` (not below it); keep what is still being written.

    A process id has a meaning only in its own process table: on this computer since it was started, in the same
    container. There a partial file is removed as soon as its process is gone; any other once it is a day old.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for path in [folder / entry.name for entry in entries if entry.name.endswith(ENDING) or _is_librarys(entry)]:
            with contextlib.suppress(OSError):
                if _is_left_over(path):
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_left_over(path: Path) -> bool:
    ours = _NAME.fullmatch(path.name)
    if ours and ours["table"] == _process_table() and not psutil.pid_exists(int(ours["process"])):
        return True
    known = ours or _OLD_NAME.fullmatch(path.name) or _LIBRARYS_NAME.fullmatch(path.name)
    return bool(known) and time.time() - path.lstat().st_mtime > DAY


def _is_librarys(entry: os.DirEntry) -> bool:
    """Whether a file is one that the safetensors library was writing: its name says so, and its first bytes do."""
    if not _LIBRARYS_NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
        return False
    with open(entry.path, "rb") as file:
        start = file.read(10)
    return start[8:10] in (b'{"', b"") or not start.strip(b"\0")  # the header, or nothing written yet


@cache
def _process_table() -> str:
    """An identity of this process table; other computers and containers may have the same host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
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
