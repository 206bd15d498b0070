"""Histories in one SQLite file: the embedded store of a service, shared by threads and processes of one machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from recsys.errors import Closed, DamagedHistory, InputError, SourceUnavailable
from recsys.events import Event
from recsys.retrieval.history_sources.event_text import event_texts, events_of, id_text
from recsys.retrieval.history_sources.source import Mark, Tail, all_of

__all__ = ["SqliteHistories"]

APPLICATION_ID = 0x52656353
"""In the file's header: tells our files from all other SQLite databases."""
SCHEMA_VERSION = 1
_SCHEMA = (
    "CREATE TABLE users (user INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, "
    "revision INTEGER NOT NULL DEFAULT 0)",
    # Clustered by (user, place): one user's events, in order of arrival, are one range of the file.
    "CREATE TABLE events (user INTEGER NOT NULL, place INTEGER NOT NULL, once BLOB, body TEXT NOT NULL, "
    "PRIMARY KEY (user, place)) WITHOUT ROWID",
    "CREATE UNIQUE INDEX events_once ON events (user, once) WHERE once IS NOT NULL",
    # Whoever changes what was appended, with whatever tool, is noticed by those who remember it.
    "CREATE TRIGGER events_deleted AFTER DELETE ON events BEGIN "
    "UPDATE users SET revision = revision + 1 WHERE user = OLD.user; END",
    "CREATE TRIGGER events_changed AFTER UPDATE ON events BEGIN "
    "UPDATE users SET revision = revision + 1 WHERE user IN (OLD.user, NEW.user); END",
)
_USER = "SELECT user, revision FROM users WHERE id = ?"
_READ = "SELECT place, body FROM events WHERE user = ? AND place > ? ORDER BY place"
_NEXT_PLACE = "SELECT coalesce(max(place), -1) + 1 FROM events WHERE user = ?"
_ADD = "INSERT INTO events VALUES (?, ?, ?, ?) ON CONFLICT (user, once) WHERE once IS NOT NULL DO NOTHING"


@dataclass(slots=True, eq=False)
class _Append:
    """One caller's events on their way into the file."""

    user: str
    bodies: list[str]
    timed: list[bool]
    done: bool = False
    """Somebody tried; if it is not stored then, it failed."""
    stored: bool = False
    failed: sqlite3.Error | None = None


class SqliteHistories:
    """Users' events in a file in WAL mode, committed with ``synchronous=FULL``.

    An append returns after its transaction was written to the log and the log synced (fsync). So an acknowledged event
    survives the death of the process at any moment (SIGKILL, out of memory), and a crash of the system or a loss of
    power as far as the disk keeps what it reported as synced; a disk that lies about that can lose the newest commits,
    never the consistency of the file. Appends that wait for each other share one commit.

    Any number of threads may use one instance: each read has a connection of its own, writes take turns. Several
    processes of one machine may open the same file, each for itself; not over a network file system, which WAL mode
    does not support. After a fork the child opens it anew.
    """

    def __init__(self, path: Path | str, *, busy_timeout_s: float = 5.0) -> None:
        """Open a file of events, or start one in an existing folder.

        Args:
            path: the file; SQLite keeps ``…-wal`` and ``…-shm`` beside it.
            busy_timeout_s: how long to wait for other processes that write.

        Raises:
            InputError: the folder does not exist, or the file is something else or of a newer version.
            SourceUnavailable: the file cannot be opened.
        """
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise InputError(f"{self.path}: its folder does not exist; make it first")
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; name a file for the events")
        if not busy_timeout_s > 0:
            raise InputError(f"busy_timeout_s must be positive, got {busy_timeout_s!r}")
        self._busy_timeout_s = busy_timeout_s
        self._process = os.getpid()
        self._idle: list[sqlite3.Connection] = []
        self._waiting: list[_Append] = []
        self._lock = threading.Lock()  # guards the two lists and _closed; held for moments only
        self._writing = threading.Lock()  # held while a transaction runs
        self._closed = False
        with self._failures("opened"):
            self._writer = self._connect("rwc")
            try:
                self._prepare(self._writer)
            except BaseException:
                self._writer.close()
                raise
        self._inode = self.path.stat().st_ino

    def events(self, user_ids: Sequence[Any]) -> list[list[Event] | None]:
        """See :meth:`HistorySource.events`; all users are read from one state of the file."""
        return all_of(self, user_ids)

    def tails(self, user_ids: Sequence[Any], marks: Sequence[Mark | None]) -> list[Tail]:
        """See :meth:`TailSource.tails`."""
        names = [id_text(user_id) for user_id in user_ids]
        self._check()
        with self._failures("read"), self._reader() as connection:
            connection.execute("BEGIN")
            try:
                found = [_behind(connection, name, mark) for name, mark in zip(names, marks, strict=True)]
            finally:
                connection.execute("COMMIT")
        try:
            return [Tail(events_of(body for _, body in rows), mark, same) for rows, mark, same in found]
        except (TypeError, ValueError) as error:
            reason = f"holds events that cannot be read ({error}); restore a copy"
            raise DamagedHistory(f"{self.path} {reason}") from error

    def append(self, user_id: Any, events: Sequence[Event]) -> None:
        """See :meth:`HistorySource.append`; no events, no user."""
        name, bodies = id_text(user_id), event_texts(events)
        self._check()
        if not bodies:
            return
        mine = _Append(name, bodies, [event.timestamp is not None for event in events])
        with self._lock:
            self._waiting.append(mine)
        with self._failures("written"):
            with self._writing:
                if not mine.done:  # else whoever wrote before took it along
                    with self._lock:
                        together, self._waiting = self._waiting, []
                    self._write(together)
            if not mine.stored:
                raise mine.failed or sqlite3.OperationalError("the writing thread was interrupted")

    def forget(self, user_id: Any) -> None:
        """Delete all events of a user.

        Raises:
            InputError, SourceUnavailable: as :meth:`append`.
        """
        name = id_text(user_id)
        self._check()
        with self._failures("written"), self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._writer.execute("DELETE FROM events WHERE user = (SELECT user FROM users WHERE id = ?)", (name,))
                self._writer.execute("DELETE FROM users WHERE id = ?", (name,))
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """See :meth:`HistorySource.close`; waits for an append under way."""
        with self._writing, self._lock:
            if self._closed or os.getpid() != self._process:
                return
            self._closed = True
            for connection in (*self._idle, self._writer):
                connection.close()
            self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- connections -----------------------------------------------------------------------------------------------

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=self._busy_timeout_s,
            isolation_level=None,  # transactions are begun and committed in words
            check_same_thread=False,  # one thread at a time, not always the same
        )
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect("rw")
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check whose file it is, or lay out a new one."""
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._lay_out(connection)
                finally:
                    connection.execute("COMMIT")
                mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                # Changing the mode of a file that another process has just made does not wait by itself.
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise InputError(f"{self.path}: this file system allows no write-ahead log; use a local disk")
            return

    def _lay_out(self, connection: sqlite3.Connection) -> None:
        application, version, num_tables = (
            connection.execute(question).fetchone()[0]
            for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if (application, version, num_tables) == (0, 0, 0):
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif application != APPLICATION_ID:
            raise InputError(f"{self.path} is another program's database, not a file of events; name another file")
        elif version != SCHEMA_VERSION:
            raise InputError(
                f"{self.path} has events in format {version}, this version reads format {SCHEMA_VERSION}; "
                "use the version of recsys that wrote it"
            )

    # -- writing ---------------------------------------------------------------------------------------------------

    def _write(self, together: Sequence[_Append]) -> None:
        """One transaction for all who wait; the caller holds the turn to write."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                for one in together:
                    self._add(one)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            for one in together:
                one.stored = True
        except sqlite3.Error as error:
            for one in together:
                one.failed = error
        finally:
            for one in together:
                one.done = True

    def _add(self, one: _Append) -> None:
        self._writer.execute("INSERT INTO users (id) VALUES (?) ON CONFLICT DO NOTHING", (one.user,))
        user = self._writer.execute("SELECT user FROM users WHERE id = ?", (one.user,)).fetchone()[0]
        place = self._writer.execute(_NEXT_PLACE, (user,)).fetchone()[0]
        rows = [
            (user, place + row, blake2b(body.encode(), digest_size=16).digest() if timed else None, body)
            for row, (body, timed) in enumerate(zip(one.bodies, one.timed, strict=True))
        ]
        self._writer.executemany(_ADD, rows)

    # -- failures --------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise SourceUnavailable(f"{self.path} was opened by the parent of this process; open it anew after a fork")
        if self._closed:
            raise Closed(f"{self.path} was closed; open it again with SqliteHistories(…)")
        try:
            same = self.path.stat().st_ino == self._inode
        except OSError as error:
            raise SourceUnavailable(f"{self.path} is gone ({error}); put it back and open it again") from error
        if not same:
            raise SourceUnavailable(f"{self.path} was replaced by another file; close and open it again")

    @contextmanager
    def _failures(self, verb: str) -> Iterator[None]:
        """Turn errors of SQLite into ours."""
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB":
                raise InputError(f"{self.path} is no SQLite database; name another file for the events") from error
            if self._closed:
                raise Closed(f"{self.path} was closed; open it again with SqliteHistories(…)") from error
            code = getattr(error, "sqlite_errorname", None)
            if code is None and "Could not decode" in str(error):  # of one user's events, by Python's own reading
                reason = f"holds events that cannot be read ({error}); restore a copy"
                raise DamagedHistory(f"{self.path} {' '.join(reason.split())}") from error
            if (code or "").startswith("SQLITE_CORRUPT"):
                raise SourceUnavailable(f"{self.path} cannot be {verb}: {error}; restore a copy") from error
            wait = f" for {self._busy_timeout_s:g} s" if _is_busy(error) else ""
            raise SourceUnavailable(f"{self.path} cannot be {verb}: {error}{wait}; try again") from error


def _behind(
    connection: sqlite3.Connection, name: str, mark: Mark | None
) -> tuple[list[tuple[int, str]], Mark | None, bool]:
    """(place, text) of a user's events behind a mark if it holds, else of all; the new mark; whether it held."""
    user = connection.execute(_USER, (name,)).fetchone()
    if user is None:
        return [], None, False
    same = mark is not None and mark.state == user  # numbers of users are never used again
    begin = mark.place if same and mark is not None else -1
    rows = connection.execute(_READ, (user[0], begin)).fetchall()
    last = rows[-1][0] if rows else begin
    return rows, Mark(last, user) if last >= 0 else None, same


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
