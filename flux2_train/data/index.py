"""Hashes and facts of files in one SQLite file, so that they are read once. Safe with several processes and kill -9.

A file is recognised by path, size, mtime, ctime and inode; if any of these differs it is read again. The index only
saves time: if it is deleted it is built anew.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..errors import UserError
from .images import Facts, digest_of, examine, no_filling_up, read_bytes

# A file that is written twice within one tick of the file system's clock looks unchanged, so the hash of a file is kept
# only if the file is at least this old.
SETTLED_SECONDS = 2.0
BUSY_SECONDS = 60.0
BATCH = 500
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
        self.lock = threading.Lock()
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            self.connection = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"The cache's index {self.path} cannot be written ({_reason(error)}); "
                            "make its folder writable or choose another place for the cache.") from error  # fmt: skip

    def _connect(self) -> sqlite3.Connection:
        name = str(self.path) if self.path else ":memory:"
        connection = sqlite3.connect(name, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        try:
            connection.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) or self.path is None:
                raise
            self.path.unlink()  # the file is damaged; everything in it can be computed again
            connection = sqlite3.connect(name, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
            connection.executescript(SCHEMA)
        return connection

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
                raise UserError(f"The cache's index {self.path} cannot be written ({_reason(error)}).") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def rows(self, query: str, values: Iterable = ()) -> list[tuple]:
        """All rows of a query."""
        with self.lock:
            return self.connection.execute(query, tuple(values)).fetchall()

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
                known[path] = (tuple(state), digest)
        return known

    def _digest(self, task: tuple[Path, tuple[Signature, str] | None]) -> tuple[tuple, tuple | None]:
        path, known = task
        if not _is_text(path):
            return (path, UserError(f"{path.name} has a name that is no Unicode text; rename it.")), None
        try:
            before = signature(path.stat())
            if known and known[0] == before:
                return (path, known[1]), None
            digest = digest_of(read_bytes(path))
        except (OSError, UserError) as error:
            reason = error if isinstance(error, UserError) else UserError(f"{path.name} cannot be read ({error}).")
            return (path, reason), None
        settled = time.time() - max(before[1], before[2]) / 1e9 > SETTLED_SECONDS
        unchanged = signature(path.stat()) == before
        return (path, digest), ((str(path), *before, digest) if settled and unchanged else None)

    def facts(self, files: dict[Path, str], report: Report = lambda done, total: None) -> dict[str, Facts]:
        """The facts of each file's content, by content hash; content that is not in the index is decoded once."""
        facts_by_digest, missing = {}, {}
        known = self.remembered("image", list(files.values()))
        for path, digest in files.items():
            if digest in known:
                facts_by_digest[digest] = Facts(**known[digest])
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
            values.update((digest, json.loads(value)) for digest, value in self.rows(query, [kind, *part]))
        return values

    def remember(self, kind: str, digest: str, value: object) -> None:
        """Keep a fact about the content with that hash."""
        with self.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (digest, kind, json.dumps(value)))

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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
