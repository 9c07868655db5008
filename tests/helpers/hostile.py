"""What hostile folders and full disks are made of: the real things, from the operating system."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

NOBODY = 65534


@contextmanager
def full_disk(free: int = 0, size: int = 4 << 20):
    """A small file system of its own with ``free`` bytes left, or a skipped test where none may be mounted."""
    with tempfile.TemporaryDirectory() as name:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name], capture_output=True)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        try:
            disk = Disk(Path(name))
            disk.fill(free)
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


class Disk:
    """A mounted file system, which can be filled and emptied while something writes to it."""

    def __init__(self, path: Path):
        self.path, self.filling = path, path / "filling"

    def fill(self, free: int = 0) -> None:
        """Leave ``free`` bytes."""
        size = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize - free
        if size > 0:
            with self.filling.open("ab") as file:
                file.write(bytes(size))

    def empty(self) -> None:
        """Make room again."""
        self.filling.unlink(missing_ok=True)


@contextmanager
def as_nobody():
    """The rest of the block has the rights of a user who owns nothing; root may read what nobody else may."""
    if sys.platform == "win32" or os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def open_folder():
    """A temporary folder that every user may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o777)
        yield Path(name)


@contextmanager
def within(seconds: float, megabytes: float | None = None):
    """The block takes at most so long, and its process grows by at most so much while it works."""
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    yield
    assert time.perf_counter() - began < seconds
    if megabytes is not None:
        assert psutil.Process().memory_info().rss - before < megabytes * 1e6
