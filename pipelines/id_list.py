"""Lists of ids in files: a column of a Parquet or CSV table, or one id per line of text."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.errors import InputError

__all__ = ["read_ids"]


def read_ids(path: Path, column: str, flag: str) -> pl.Series:
    """The ids that a file lists.

    Args:
        path: ``.parquet`` or ``.csv`` with a column named ``column``, anything else is text with one id per line.
        column: ``user_id`` or ``item_id``.
        flag: for messages.

    Raises:
        InputError: the file is missing, unreadable, or has no such column.
    """
    if not path.is_file():
        raise InputError(f"{flag}: {path} is no file; give a Parquet, CSV or text file of {column}s")
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path, glob=False)
        elif path.suffix == ".csv":
            frame = pl.read_csv(path, infer_schema=False, glob=False)
        else:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            return pl.Series(column, [line for line in lines if line and line != column], dtype=pl.String)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{flag}: {path} cannot be read ({reason})") from None
    if column not in frame.columns:
        raise InputError(f"{flag}: {path} has no column {column}; it has {', '.join(frame.columns)}")
    return frame[column].drop_nulls()
