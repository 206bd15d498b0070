"""Rows that cannot be used: reported by place, or left out and counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from recsys.errors import InputError

__all__ = ["ROW", "BadRows"]

ROW = "__row"
"""Column that carries the number of a row in its file: 1 is the first row of data."""


def _shown(value: Any) -> str:
    text = repr(value.to_list() if isinstance(value, pl.Series) else value)
    return text if len(text) <= 60 else text[:57] + "..."


class BadRows:
    """Applies one rule to all bad rows: stop at the first, or drop and count them.

    Args:
        mode: ``error`` or ``drop``.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.dropped: Counter[str] = Counter()

    def keep(
        self, frame: pl.DataFrame, file: str, column: str, bad: pl.Expr, reason: str, advice: str, *, show: bool = True
    ) -> pl.DataFrame:
        """The rows of ``frame`` for which ``bad`` does not hold.

        Args:
            frame: rows that carry :data:`ROW`.
            file: what people call the table.
            column: the column at fault.
            bad: a boolean expression; null counts as bad.
            reason: what is wrong, as it is counted.
            advice: what to do about it.
            show: whether the message quotes the value.

        Raises:
            InputError: there is a bad row and the mode is ``error``; names the first.
        """
        bad_N = frame.select(bad.fill_null(True).alias("bad"))["bad"]
        count = int(bad_N.sum())
        if count == 0:
            return frame
        if self.mode == "error":
            first = frame.filter(bad_N).sort(ROW).head(1)
            value = first[column][0] if column in first.columns else None
            quoted = f" ({_shown(value)})" if show and value is not None else ""
            more = f" ({count} such rows)" if count > 1 else ""
            raise InputError(
                f"{file}, column {column}, row {first[ROW][0]}: {reason}{quoted}{more}; "
                f"{advice}, or leave such rows out with --bad-rows drop"
            )
        self.dropped[f"{file}: {column}: {reason}"] += count
        return frame.filter(~bad_N)
