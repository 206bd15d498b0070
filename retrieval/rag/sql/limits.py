"""How large and how long a query to tables may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from recsys.errors import InputError, shown

__all__ = ["SqlLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlLimits:
    """Limits of one query. What is beyond is refused before it runs, stopped, or cut with a word about it."""

    seconds: float = 2.0
    """Time to run. After it the query is interrupted."""
    rows: int = 50
    """Rows of a result; more are not fetched."""
    cell_chars: int = 300
    """Characters of one value of a result."""
    result_chars: int = 20_000
    """Characters of all values of a result together."""
    query_chars: int = 4_000
    """Characters of the query."""
    tables: int = 8
    """Tables that a query names, each mention counted: joins of more would take long to plan alone."""
    memory_mb: int = 256
    """Memory of the database that runs it; nothing is written to a disk when it is full."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise InputError(f"SqlLimits.{field.name} must be a positive number, got {shown(value)}")
            if field.name != "seconds" and not isinstance(value, int):
                raise InputError(f"SqlLimits.{field.name} must be a whole number, got {shown(value)}")
