"""Hashes and facts of files in one SQLite file, so that they are read once. Safe with several processes and kill -9.

A file is recognised by path, size, mtime, ctime and inode; if any of these differs it is read again. The index only
saves time: if it is deleted it is built anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..bounded import from_json, reason
from ..errors import UserError
from ..names import shown
from .images import Facts, digest_of, examine, no_filling_up, read_bytes

# A file that is written twice within one tick of the file system's clock looks unchanged, so the hash of a file is kept
# only if the file is at least this old.
SETTLED_SECONDS = 2.0
BUSY_SECONDS = 60.0
BATCH = 500
VERSION = 1
COLUMNS = ["path", "size", "mtime", "ctime", "inode", "digest"]  # of the table of files
# In the sentences with which SQLite says that the disk, the lock or the rights are the matter, not the file.
PASSING = ("locked", "busy", "full", "readonly", "unable to open", "disk I/O", "interrupted", "out of memory")
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, inode INT, digest TEXT);
CREATE TABLE IF NOT EXISTS facts (digest TEXT, kind TEXT, value TEXT, PRIMARY KEY (digest, kind));
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, folder TEXT, used REAL);
CREATE TABLE IF NOT EXISTS uses (owner TEXT, entry TEXT, PRIMARY KEY (owner, entry)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uses_by_entry ON uses (entry);
CREATE TABLE IF NOT EXISTS changes (number INT);
"""

Signature = tuple[int, int, int, int]
Report = Callable[[int, int], None]  # (done, total)


def signature(stat: os.stat_result) -> Signature:
    """Values that change when a file changes, known without reading it."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


class Index:
    """The index in ``folder``, or one in memory where ``folder`` is None."""

    def __init__(self, folder: Path | None = None):
        self.path = folder / "index.sqlite" if folder else None
        self.lock = threading.RLock()
        self.notes: tuple[str, ...] = ()  # what a person should know about this index
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            self.connection = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"The cache's index {self.path} cannot be written ({reason(error)}); "
                            "make its folder writable or choose another place for the cache.") from error  # fmt: skip

    def _connect(self) -> sqlite3.Connection:
        try:
            return _opened(self.path)
        except (sqlite3.Error, Foreign) as error:
            if not _is_damage(error) or self.path is None:
                raise
            self._set_aside(error)
        return _opened(self.path)

    def _set_aside(self, why: Exception) -> None:
        """Rename the file: everything in it can be computed again."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        for end in ("-journal", "-wal", "-shm", ""):  # they belong to the damaged file, and would damage the new one
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{end}", f"{aside}{end}")
        note = f"the cache's index could not be read ({why}) and is made anew; the old one lies as {aside}"
        logging.warning("%s", note)
        self.notes = (*self.notes, note)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: everything written inside is kept, or nothing if an error or a kill ends it."""
        with self.lock:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield self.connection
                self.connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                if _is_damage(error) and self.path:
                    self._renew(error)
                raise UserError(
                    f"The cache's index {self.path} cannot be written ({reason(error)}); make room or its folder "
                    "writable, and queue again."
                ) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _renew(self, error: Exception) -> None:
        """Begin a new file in place of one whose damage shows only now."""
        self.connection.close()
        self._set_aside(error)
        self.connection = _opened(self.path)

    def rows(self, query: str, values: Iterable = ()) -> list[tuple]:
        """All rows of a query."""
        values = tuple(values)
        with self.lock:
            try:
                return self.connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                if not _is_damage(error) or self.path is None:
                    raise UserError(f"The cache's index {self.path} cannot be read ({reason(error)}).") from error
                self._renew(error)
            return self.connection.execute(query, values).fetchall()

    def digests(self, paths: list[Path], report: Report = lambda done, total: None) -> dict[Path, str | UserError]:
        """The content hash of each file, or why it cannot be read; unchanged files are not read."""
        known = self._known([p for p in paths if _is_text(p)])
        return dict(self._in_threads(self._digest, [(p, known.get(str(p))) for p in paths], report))

    def _known(self, paths: list[Path]) -> dict[str, tuple[Signature, str]]:
        wanted, known = [str(p) for p in paths], {}
        for start in range(0, len(wanted), BATCH):
            part = wanted[start : start + BATCH]
            marks = ",".join("?" * len(part))
            for path, *state, digest in self.rows(f"SELECT * FROM files WHERE path IN ({marks})", part):
                if _is_digest(digest):
                    known[path] = (tuple(state), digest)
        return known

    def _digest(self, task: tuple[Path, tuple[Signature, str] | None]) -> tuple[tuple, tuple | None]:
        path, known = task
        if not _is_text(path):
            return (path, UserError(f"{shown(path.name)} has a name that is no Unicode text; rename it.")), None
        try:
            before = signature(path.stat())
            if known and known[0] == before:
                return (path, known[1]), None
            digest = digest_of(read_bytes(path))
        except (OSError, UserError) as error:
            why = error if isinstance(error, UserError) else f"{shown(path.name)} cannot be read ({reason(error)})."
            return (path, UserError(str(why))), None
        settled = time.time() - max(before[1], before[2]) / 1e9 > SETTLED_SECONDS
        try:
            unchanged = signature(path.stat()) == before
        except OSError:
            unchanged = False
        return (path, digest), ((str(path), *before, digest) if settled and unchanged else None)

    def facts(self, files: dict[Path, str], report: Report = lambda done, total: None) -> dict[str, Facts]:
        """The facts of each file's content, by content hash; content that is not in the index is decoded once."""
        facts_by_digest, missing = {}, {}
        known = {digest: facts for digest, value in self.remembered("image", list(files.values())).items()
                 if (facts := _facts(value))}  # fmt: skip
        for path, digest in files.items():
            if digest in known:
                facts_by_digest[digest] = known[digest]
            else:
                missing.setdefault(digest, path)

        def look(task: tuple[str, Path]) -> tuple[tuple[str, Facts], tuple[str, str, str]]:
            facts = examine(read_bytes(task[1]))
            return (task[0], facts), (task[0], "image", json.dumps(asdict(facts)))

        with no_filling_up():
            facts_by_digest.update(self._in_threads(look, list(missing.items()), report, "facts"))
        return facts_by_digest

    def remembered(self, kind: str, digests: list[str]) -> dict[str, object]:
        """The facts of one kind that the index has, by content hash."""
        values = {}
        for start in range(0, len(digests), BATCH):
            part = digests[start : start + BATCH]
            query = f"SELECT digest, value FROM facts WHERE kind = ? AND digest IN ({','.join('?' * len(part))})"
            for digest, value in self.rows(query, [kind, *part]):
                with contextlib.suppress(ValueError, TypeError):  # what is damaged is found out anew
                    values[digest] = from_json(value)
        return values

    def remember(self, kind: str, digest: str, value: object) -> None:
        """Keep a fact about the content with that hash."""
        with self.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (digest, kind, json.dumps(value)))

    def folders(self, most: int) -> list[str]:
        """The folders of the data sets that were encoded, the last one first."""
        query = "SELECT folder FROM owners GROUP BY folder ORDER BY MAX(used) DESC LIMIT ?"
        return [folder for (folder,) in self.rows(query, [most])]

    def changed(self) -> None:
        """Note that entries were removed, so that readers that rely on ``changes`` look again."""
        with self.writing() as connection:
            connection.execute("INSERT INTO changes VALUES (1)")

    def changes(self) -> int:
        """How often entries have been removed."""
        return self.rows("SELECT COUNT(*) FROM changes")[0][0]

    def _in_threads(self, work: Callable, tasks: list, report: Report, table: str = "files") -> Iterator[tuple]:
        """Yield the result of ``work`` on each task. The rows that it returns are written in batches.

        They are written even if the caller stops half way.
        """
        kept: list[tuple] = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                for start in range(0, len(tasks), BATCH):
                    for done, (result, row) in enumerate(pool.map(work, tasks[start : start + BATCH]), start + 1):
                        kept += [row] if row else []
                        report(done, len(tasks))
                        yield result
                    self._keep(table, kept)
            finally:
                self._keep(table, kept)

    def _keep(self, table: str, rows: list[tuple]) -> None:
        if rows:
            with self.writing() as connection:
                connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
            rows.clear()


def _is_text(path: Path) -> bool:
    """Whether a path is Unicode text. Names from old archives may not be, and no database or message can hold those."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _facts(value: object) -> Facts | None:
    """The facts that the index remembers; None for what is no facts, which are then found out anew."""
    kinds = {"width": int, "height": int, "alpha": bool, "problem": str, "look": str}
    fits = isinstance(value, dict) and value.keys() == kinds.keys()
    return Facts(**value) if fits and all(type(value[name]) is kind for name, kind in kinds.items()) else None


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 32


class Foreign(Exception):
    """The index has another form than this version gives it."""


def _opened(path: Path | None) -> sqlite3.Connection:
    name = str(path) if path else ":memory:"
    connection = sqlite3.connect(name, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        connection.executescript(SCHEMA)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        columns = [row[1] for row in connection.execute("PRAGMA table_info(files)")]
        if version > VERSION or columns != COLUMNS:
            raise Foreign("it is of another version of this pack")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_damage(error: Exception) -> bool:
    """Whether an error tells of a file that will never work, and not of a full disk, a lock or missing rights."""
    return not isinstance(error, sqlite3.OperationalError) or not any(word in str(error) for word in PASSING)
