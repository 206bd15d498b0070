"""The two tables a question may be put to: the items, and the events of the one user who asks.

The items are written once into a database file of their own, which every question attaches for reading. The user's
events are put into the memory of a database that exists for this question alone: no other user's row is anywhere near
the query, so that no wording of it could show one. Before a query runs, files and settings are locked, and it runs in a
transaction that cannot write.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import polars as pl

from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.rag.passage import plain_text
from recsys.retrieval.rag.sql.checked_query import SqlError, checked_query
from recsys.retrieval.rag.sql.limits import SqlLimits
from recsys.retrieval.rag.sql.query_result import QueryResult, cut_to_limits

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["ItemDatabase", "UserTables"]

_LONGEST_TEXT = 4_000
"""Characters of a text of an item that a query can see."""
_MOST_EVENTS = 10_000
"""Newest events of a user that a query can see."""
_GRACE_SECONDS = 1.0
"""After which a query that an interrupt does not stop is left alone."""
_UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
_SETTINGS = {
    "threads": 1, "temp_directory": "", "autoinstall_known_extensions": False, "autoload_known_extensions": False,
    "allow_community_extensions": False, "allow_unsigned_extensions": False, "python_enable_replacements": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table, as a question may name it."""

    name: str
    kind: str
    """As DuckDB calls its type."""


class ItemDatabase:
    """The item table as a database file in a private folder that goes when this object does."""

    def __init__(self, items: pl.DataFrame, *, withdrawn: Iterable[Any] = (), real_clock: bool = True) -> None:
        """Write the items.

        Args:
            items: item_id and any columns. Vectors, binary and nested columns are left out, and so is one whose name
                differs from an earlier one's by case alone; :attr:`left_out` names them.
            withdrawn: ids of items that no query sees.
            real_clock: whether timestamps of events are seconds since 1970, which get a column of dates beside them.

        Raises:
            InputError: DuckDB is not installed.
        """
        duckdb = _duckdb()
        kept, self.left_out = _columns(items)
        gone = list(withdrawn)
        frame = items.select(kept)
        if gone:
            frame = frame.filter(~pl.col("item_id").is_in(pl.Series(gone, dtype=items.schema["item_id"]).implode()))
        self.real_clock = real_clock
        self._folder = Path(tempfile.mkdtemp(prefix="recsys-items-"))
        self._end = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.path, table = self._folder / "items.duckdb", self._folder / "items.parquet"
        frame.write_parquet(table)
        with duckdb.connect(str(self.path), config={"threads": 1, "autoinstall_known_extensions": False}) as writing:
            writing.execute("CREATE TABLE items AS SELECT * FROM read_parquet(?)", [str(table)])
            described = writing.execute("DESCRIBE items").fetchall()
        table.unlink()
        self.path.chmod(0o400)
        self.columns = tuple(Column(row[0], row[1]) for row in described)
        self._titles = "title" if "title" in frame.columns and frame.schema["title"] == pl.String else None

    def close(self) -> None:
        """Remove the file. Tables that are open stay readable."""
        self._end()

    def open(self, events: Sequence[Event], limits: SqlLimits | None = None) -> UserTables:
        """The tables of one user.

        Args:
            events: all of this user's, oldest first; the newest 10,000 are kept.
            limits: of every query.
        """
        limits = limits or SqlLimits()
        settings = {**_SETTINGS, "memory_limit": f"{limits.memory_mb}MB"}
        connection = _duckdb().connect(":memory:", config=settings)
        try:
            quoted = str(self.path).replace("'", "''")
            connection.execute(f"ATTACH '{quoted}' AS catalogue (READ_ONLY)")
            connection.execute("CREATE VIEW items AS SELECT * FROM catalogue.items")
            self._put(connection, list(events)[-_MOST_EVENTS:])
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            described = connection.execute("DESCRIBE history").fetchall()
        except BaseException:
            connection.close()
            raise
        history = tuple(Column(row[0], row[1]) for row in described)
        return UserTables(connection, {"items": self.columns, "history": history}, limits)

    def _put(self, connection: DuckDBPyConnection, events: list[Event]) -> None:
        kind = next(column.kind for column in self.columns if column.name == "item_id")
        moment = "make_timestamp(timestamp * 1000000) AS happened_at, " if self.real_clock else ""
        title = f"{self._titles}, " if self._titles else ""
        # Of the items these two alone: others may be called like a column of events.
        joined = f"LEFT JOIN (SELECT item_id, {self._titles} FROM items) USING (item_id)" if self._titles else ""
        connection.execute(
            f"CREATE TABLE history AS SELECT place, item_id, {title}actions, timestamp, {moment}surface FROM ("
            f"SELECT unnest(?::BIGINT[]) AS place, TRY_CAST(unnest(?::VARCHAR[]) AS {kind}) AS item_id, "
            "unnest(?::VARCHAR[]) AS actions, unnest(?::BIGINT[]) AS timestamp, unnest(?::VARCHAR[]) AS surface"
            f") {joined} ORDER BY place",
            [
                list(range(1, len(events) + 1)),
                [plain_text(str(event.item_id)) if event.item_id != "" else None for event in events],
                [plain_text(_actions(event)) for event in events],
                [_moment(event.timestamp) for event in events],
                [None if event.surface is None else plain_text(event.surface) for event in events],
            ],
        )


class UserTables:
    """Answers queries of one user; one at a time. A context manager, closed at its end."""

    def __init__(
        self, connection: DuckDBPyConnection, tables: dict[str, tuple[Column, ...]], limits: SqlLimits
    ) -> None:
        self.tables, self.limits = tables, limits
        self._connection: DuckDBPyConnection | None = connection

    def __enter__(self) -> UserTables:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the user's events."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def query(self, sql: str, *, must_read: Iterable[str] = (), deadline: float | None = None) -> QueryResult:
        """Rows of one query.

        Args:
            sql: one SELECT or WITH statement over ``items`` and ``history``.
            must_read: tables without which no answer can be right.
            deadline: a reading of :func:`time.monotonic`; the query ends then, or earlier by the limits.

        Raises:
            SqlError: it is refused, fails, or is not done in time; one line says why.
        """
        seconds = self.limits.seconds
        if deadline is not None:
            seconds = min(seconds, deadline - time.monotonic())
        if seconds <= 0:
            raise SqlError("there is no time left for a query")
        if self._connection is None:
            raise SqlError("the tables are closed")
        work = _Work(self._connection, sql, self.tables, self.limits, frozenset(must_read))
        started = time.monotonic()
        thread = threading.Thread(target=work.run, name="recsys-sql", daemon=True)
        thread.start()
        if not work.done.wait(seconds):
            end = time.monotonic() + _GRACE_SECONDS
            while not work.done.is_set() and time.monotonic() < end:
                self._connection.interrupt()  # more than once: it may come before the query began
                work.done.wait(0.02)
            if not work.done.is_set():
                self._connection = None  # the thread has it until the query ends
            raise SqlError(f"the query took longer than {seconds:.3g} seconds; write a simpler one")
        if work.error is not None:
            raise work.error
        taken = time.monotonic() - started
        return QueryResult.of(work.sql, work.columns, work.rows, self.limits, seconds=taken, tables=work.tables)


class _Work:
    """One query, run in a thread of its own so that whoever waits can stop waiting."""

    def __init__(
        self,
        connection: DuckDBPyConnection,
        sql: str,
        tables: dict[str, tuple[Column, ...]],
        limits: SqlLimits,
        must_read: frozenset[str],
    ) -> None:
        self.connection, self.sql, self.limits = connection, sql, limits
        self.names = {name: [column.name for column in columns] for name, columns in tables.items()}
        self.must_read, self.tables = must_read, frozenset[str]()
        self.done = threading.Event()
        self.columns: list[str] = []
        self.rows: list[Any] = []
        self.error: SqlError | None = None

    def run(self) -> None:
        duckdb = _duckdb()
        try:
            with suppress(duckdb.Error):  # where the interrupt of an earlier query hit its own ROLLBACK
                self.connection.execute("ROLLBACK")
            self.connection.execute("BEGIN TRANSACTION READ ONLY")
            try:
                checked = checked_query(self.connection, self.sql, self.names, self.limits)
                self.sql, self.tables = checked.sql, checked.tables
                if missing := sorted(self.must_read - checked.tables):
                    raise SqlError(f"the question is about the table {missing[0]}; select from it")
                described = self.connection.execute(f"DESCRIBE ({self.sql})").fetchall()
                self.columns = [column[0] for column in described]
                kinds = [column[1] for column in described]
                self.rows = self.connection.execute(cut_to_limits(self.sql, kinds, self.limits)).fetchall()
            finally:
                self.connection.execute("ROLLBACK")
        except SqlError as error:
            self.error = error
        except duckdb.Error as error:
            self.error = SqlError(_one_line(str(error)))
        except _UNREADABLE as error:  # such as a value that Python cannot hold; no rows at all would be an answer
            self.error = SqlError(f"the result cannot be read: {_one_line(str(error)) or type(error).__name__}")
        finally:
            self.done.set()


def _one_line(text: str) -> str:
    """An error of DuckDB without the picture of the query and without advice about its settings."""
    if "pytz" in text:  # which its Python needs for them
        return "the query gives times with a time zone; CAST them AS TIMESTAMP"
    line = " ".join(text.split("\nLINE ")[0].split("\nPossible solutions")[0].split())
    return line.split(" Database is launched")[0][:300]


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise InputError(f"questions to tables need DuckDB ({error}); pip install 'recsys[rag]'") from None
    return duckdb


def _actions(event: Event) -> str:
    return event.actions if isinstance(event.actions, str) else "+".join(event.actions)


def _moment(timestamp: int | None) -> int | None:
    """Microseconds of it fit into 64 bits."""
    return None if timestamp is None or abs(timestamp) > 2**42 else int(timestamp)


def _columns(items: pl.DataFrame) -> tuple[list[pl.Expr], tuple[str, ...]]:
    """How each column is written, and the names of those that are not."""
    kept, left_out, seen = list[pl.Expr](), list[str](), set[str]()
    for name, kind in items.schema.items():
        inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else kind
        whole, listed = pl.col(name), inner is not kind
        text: pl.Expr | None = None
        if listed and (isinstance(kind, pl.Array) or inner.is_float()):
            pass  # a vector
        elif inner in (pl.String, pl.Categorical, pl.Enum):
            text = whole.list.eval(_text(pl.element())) if listed else _text(whole)
        elif inner.is_float():
            text = whole.fill_nan(None)  # which DuckDB takes for the largest number of all
        elif (inner.is_numeric() and inner != pl.Int128) or inner in (pl.Boolean, pl.Date, pl.Datetime, pl.Time):
            text = whole
        if text is None or name.lower() in seen or "\x00" in name:
            left_out.append(name)
        else:
            seen.add(name.lower())
            kept.append(text)
    return kept, tuple(left_out)


def _text(column: pl.Expr) -> pl.Expr:
    return column.cast(pl.String).str.slice(0, _LONGEST_TEXT)
