"""Encoded tensors on disk: one safetensors file per entry, named by a hash and always complete.

A key is the hash of everything that changes the result, so an entry never becomes stale, only unused. Entries are
written by ``atomic.replacing``, so that ``kill -9``, two processes at once and a full disk do no harm. They are not
flushed to disk one by one: an entry that a power cut damaged is noticed by its checksum and made again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import safetensors_header
from ..atomic import replacing, sweep
from ..errors import UserError
from .index import BATCH, Index, Signature, signature

ENTRY = ".safetensors"
NAME = "entry:"  # what a key begins with in the index, whose other rows have the path of an image there
META = "flux2_train"  # holds checksum and dtype before narrowing; one key, as safetensors fixes no order of several
MAX_HEADER = 1 << 20
NARROW = {torch.float32: torch.bfloat16}


class DamagedEntry(Exception):
    """An entry's file does not hold what was written."""


@dataclass(frozen=True)
class Sizes:
    """Number of entries and their bytes: of all, and of those that no data set uses."""

    entries: int
    size: int
    unused_entries: int
    unused_size: int


class Store:
    """The entries below ``folder``. Raises UserError if the folder cannot be used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index = Index(folder)
        self.pending: list[tuple] = []
        for part in folder.glob("??"):
            sweep(part)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{ENTRY}"

    def missing(self, keys: list[str]) -> list[str]:
        """The keys without an entry. Damaged entries are removed first, so that they are made again."""
        known = self._trusted(keys)
        absent = [key for key in dict.fromkeys(keys) if not self._is_sound(key, known.get(key))]
        self.flush()
        return absent

    def _trusted(self, keys: list[str]) -> dict[str, Signature]:
        """The signatures that intact entries had when they were last verified, by key."""
        signatures = {}
        for start in range(0, len(keys), BATCH):
            names = [_name(key) for key in keys[start : start + BATCH]]
            query = f"SELECT path, size, mtime, ctime, inode FROM files WHERE path IN ({','.join('?' * len(names))})"
            rows = self.index.rows(query, names)
            signatures.update((name.removeprefix(NAME), tuple(state)) for name, *state in rows)
        return signatures

    def _is_sound(self, key: str, known: Signature | None) -> bool:
        path = self.path(key)
        try:
            if signature(path.stat()) == known:
                return True
            self._verify(path)
        except FileNotFoundError:
            return False
        except DamagedEntry:
            self.remove(key)
            return False
        except OSError as error:
            raise UserError(f"The cache {self.folder} cannot be read ({error.strerror or error}).") from error
        self._trust(key)
        return True

    def read(self, key: str) -> Tensor:
        """The tensor of an entry, memory-mapped until something reads it. Raises UserError if it is gone or damaged."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                stored = file.get_tensor("value")
                crc, dtype = (file.metadata() or {}).get(META, " ").split(" ")
        except FileNotFoundError as error:
            self.index.changed()
            raise UserError(
                f"{path.name} is no longer in the cache {self.folder}; queue again to make it anew."
            ) from error
        except (SafetensorError, OSError) as error:
            self._lost(key, error)
        if _checksum(stored) != crc:
            self._lost(key, "its checksum is wrong")
        return restore(stored, dtype)

    def _lost(self, key: str, reason: object) -> None:
        self.remove(key)
        self.index.changed()
        raise UserError(f"An entry of the cache {self.folder} was damaged ({reason}) and has been removed; "
                        "queue again to make it anew.")  # fmt: skip

    def write(self, key: str, value: Tensor) -> None:
        """Put a tensor into the store. Raises UserError if that is impossible; the store then has no such entry."""
        stored = narrow(value.detach().cpu().contiguous())
        data = save({"value": stored}, {META: f"{_checksum(stored)} {_dtype_name(value.dtype)}"})
        path = self.path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as partial:
                partial.write_bytes(data)
        except OSError as error:
            raise UserError(self._write_problem(error, len(data))) from error
        self._trust(key)

    def _write_problem(self, error: OSError, size: int) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.folder).free
            return (
                f"The disk is full: {size} bytes did not fit into the cache {self.folder} ({free} bytes free). Make "
                "room, prune the cache, or choose another place for it; what is done so far is kept."
            )
        return (
            f"The cache {self.folder} cannot be written ({error.strerror or error}); make the folder writable or "
            "choose another place for the cache."
        )

    def _trust(self, key: str) -> None:
        """Remember the signature of an intact entry, so that it is verified again only after it has changed."""
        with contextlib.suppress(FileNotFoundError):
            self.pending.append((_name(key), *signature(self.path(key).stat()), ""))
        if len(self.pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the remembered signatures to the index. If a kill prevents that, the entries are verified once more."""
        rows, self.pending = self.pending, []
        if rows:
            with self.index.writing() as connection:
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _verify(self, path: Path) -> None:
        """Raise DamagedEntry unless a file's length fits its header and its content its checksum."""
        try:
            with path.open("rb") as file:
                header = json.loads(safetensors_header.raw(file, MAX_HEADER))
                data = file.read()
            if f"{zlib.crc32(data):08x}" != header["__metadata__"][META].split()[0]:
                raise DamagedEntry("wrong checksum")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedEntry(str(error)) from error

    def remove(self, key: str) -> None:
        """Remove an entry."""
        with contextlib.suppress(FileNotFoundError):
            self.path(key).unlink()
        with self.index.writing() as connection:
            connection.execute("DELETE FROM files WHERE path = ?", (_name(key),))

    # which data set uses which entries

    def use(self, owner: str, folder: Path, keys: list[str]) -> None:
        """Note that a data set uses exactly these entries."""
        with self.index.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO owners VALUES (?, ?, ?)", (owner, str(folder), time.time()))
            connection.execute("DELETE FROM uses WHERE owner = ?", (owner,))
            connection.executemany("INSERT OR IGNORE INTO uses VALUES (?, ?)", [(owner, key) for key in keys])

    def sizes(self) -> Sizes:
        """Number and bytes of the entries, and of those that no data set uses."""
        used = self._used()
        entries = [(path.stem, path.stat().st_size) for path in self.entries()]
        unused = [size for key, size in entries if key not in used]
        return Sizes(len(entries), sum(size for _, size in entries), len(unused), sum(unused))

    def _used(self) -> set[str]:
        return {key for (key,) in self.index.rows("SELECT DISTINCT entry FROM uses")}

    def entries(self) -> Iterator[Path]:
        """Every entry's file."""
        return self.folder.glob(f"??/*{ENTRY}")

    def prune(self, older_than_days: float | None = None) -> Sizes:
        """Remove entries that no data set uses; returns the sizes before that.

        A data set counts no longer if its folder is gone or if it was not used for ``older_than_days``.
        """
        self._forget(older_than_days)
        sizes, used = self.sizes(), self._used()
        for path in list(self.entries()):
            if path.stem not in used:
                self.remove(path.stem)
        self.index.changed()
        return sizes

    def _forget(self, older_than_days: float | None) -> None:
        rows = self.index.rows("SELECT owner, folder, used FROM owners")
        limit = time.time() - older_than_days * 86400 if older_than_days is not None else 0.0
        gone = [owner for owner, folder, used in rows if not Path(folder).exists() or used < limit]
        with self.index.writing() as connection:
            for owner in gone:
                connection.execute("DELETE FROM owners WHERE owner = ?", (owner,))
                connection.execute("DELETE FROM uses WHERE owner = ?", (owner,))

    def bound(self, limit: float, owners: set[str]) -> int:
        """Remove entries until ``limit`` bytes are left, and return how many were removed.

        The entries of the data sets that were not used for longest go first. Those that ``owners`` use stay.
        """
        total = self.sizes().size
        if not limit or total <= limit:
            return 0
        marks = ",".join("?" * len(owners))
        kept = {key for (key,) in self.index.rows(f"SELECT entry FROM uses WHERE owner IN ({marks})", sorted(owners))}
        last = dict(self.index.rows("SELECT entry, MAX(used) FROM uses JOIN owners USING (owner) GROUP BY entry"))
        removed = 0
        for path in sorted(self.entries(), key=lambda p: (last.get(p.stem, 0.0), p.stem)):
            if total <= limit:
                break
            if path.stem not in kept:
                total -= path.stat().st_size
                self.remove(path.stem)
                removed += 1
        self.index.changed()
        return removed


def _name(key: str) -> str:
    return NAME + key


def _checksum(value: Tensor) -> str:
    return f"{zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy()):08x}"


def narrow(value: Tensor) -> Tensor:
    """The value in bf16 if that loses no bit: encoders often compute in bf16 and return fp32."""
    small = NARROW.get(value.dtype)
    if small is None:
        return value
    narrowed = value.to(small)
    return narrowed if torch.equal(narrowed.to(value.dtype), value) else value


def restore(value: Tensor, dtype: str) -> Tensor:
    """Inverse of ``narrow``."""
    return value.to(getattr(torch, dtype)) if dtype in ("float32", "bfloat16", "float16") else value


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
