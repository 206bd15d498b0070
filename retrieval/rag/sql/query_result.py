"""Rows that a query gave, cut to size, as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.retrieval.rag.sql.checked_query import SqlError
from recsys.retrieval.rag.sql.limits import SqlLimits

__all__ = ["QueryResult", "cut_to_limits"]

_MOST_ELEMENTS = 20
"""Of a list in one cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """A small table."""

    sql: str
    """As it ran."""
    columns: tuple[str, ...]
    """Names of one line each: a query may call them anything."""
    rows: tuple[tuple[Any, ...], ...]
    """Texts, numbers, booleans, None and lists of these; dates as ISO text."""
    truncated: bool = False
    """There were more rows, or longer values, than the limits allow."""
    seconds: float = 0.0
    tables: frozenset[str] = frozenset()
    """Tables that were read."""

    @classmethod
    def of(
        cls, sql: str, columns: Iterable[Any], rows: Sequence[Sequence[Any]], limits: SqlLimits, **fields: Any
    ) -> QueryResult:
        """Rows as they were fetched, at most one more than the limit, cut to the limits."""
        truncated, total, kept = len(rows) > limits.rows, 0, list[tuple[Any, ...]]()
        for row in rows[: limits.rows]:
            cells = [_plain(cell, limits.cell_chars) for cell in row]
            total += sum(len(str(cell)) for cell, _ in cells)
            if total > limits.result_chars:
                truncated = True
                break
            truncated |= any(cut for _, cut in cells)
            kept.append(tuple(cell for cell, _ in cells))
        names = tuple(_plain(_line(str(name)), limits.cell_chars)[0] for name in columns)
        return cls(sql=sql, columns=names, rows=tuple(kept), truncated=truncated, **fields)

    def as_text(self) -> str:
        """One line per row, values separated by ``|``, the columns first; what a reader or a model is shown."""
        lines = [" | ".join(self.columns), *(" | ".join(_shown(cell) for cell in row) for row in self.rows)]
        if self.truncated:
            lines.append("(more than is shown)")
        elif not self.rows:
            lines.append("(no rows)")
        return "\n".join(lines)


def cut_to_limits(sql: str, kinds: Sequence[str], limits: SqlLimits) -> str:
    """The query with its rows and values no longer than :meth:`QueryResult.of` takes them.

    The database cuts them, since each value that leaves it is a copy in Python's memory, which no limit covers.

    Args:
        sql: a checked query.
        kinds: types of its columns, as DuckDB calls them.

    Raises:
        SqlError: a column holds a structure, of which no part can be cut.

    >>> cut_to_limits("SELECT a, b FROM c", ["INTEGER", "VARCHAR[]"], SqlLimits(rows=5, cell_chars=9))
    'SELECT c0, [left(v0, 10) for v0 in c1[:21]] FROM (SELECT a, b FROM c) AS found(c0, c1) LIMIT 6'
    """
    names = [f"c{number}" for number in range(len(kinds))]
    cells = ", ".join(_cut(name, kind, limits.cell_chars + 1) for name, kind in zip(names, kinds, strict=True))
    return f"SELECT {cells} FROM ({sql}) AS found({', '.join(names)}) LIMIT {limits.rows + 1}"


def _cut(name: str, kind: str, chars: int, depth: int = 0) -> str:
    if kind.endswith("[]"):
        inner = f"v{depth}"
        element = _cut(inner, kind[:-2], chars, depth + 1)
        return f"{name}[:{_MOST_ELEMENTS + 1}]" if element == inner else (
            f"[{element} for {inner} in {name}[:{_MOST_ELEMENTS + 1}]]"
        )  # fmt: skip
    if kind.startswith("VARCHAR"):
        return f"left({name}, {chars})"
    if "(" in kind and not kind.startswith("DECIMAL"):
        raise SqlError("a column of the result holds several values in one; select them one by one")
    return name


def _plain(value: Any, most: int) -> tuple[Any, bool]:
    """A cell as a plain value, and whether it was cut."""
    if value is None or isinstance(value, (bool, int)):
        return value, False
    if isinstance(value, float):
        return (value if math.isfinite(value) else None), False
    if isinstance(value, (list, tuple)):
        parts = [_plain(one, most) for one in value[:_MOST_ELEMENTS]]
        return [part for part, _ in parts], len(value) > _MOST_ELEMENTS or any(cut for _, cut in parts)
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return (text, False) if len(text) <= most else (f"{text[: most - 1]}…", True)


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.6g}" if abs(cell) < 1e6 else f"{cell:.0f}"
    if isinstance(cell, list):
        return ", ".join(_shown(one) for one in cell)
    return _line(str(cell))


def _line(text: str) -> str:
    """One line that neither makes another row of itself nor moves a terminal.

    >>> _line("items\\n7 items\\x1b[2K")
    'items 7 items[2K'
    """
    return " ".join("".join(sign for sign in word if sign.isprintable()) for word in text.split())
