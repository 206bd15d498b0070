"""One column at a time: ids, times, numbers and flags, checked and brought to one type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from recsys.events import MOST_TIME
from recsys.pipelines.prepare.bad_rows import BadRows
from recsys.pipelines.prepare.reading import Table

__all__ = ["TIME", "clean_flag", "clean_ids", "clean_number", "clean_text", "clean_time", "common_id_type", "is_text"]

TIME = "__time"
"""Time in the precision that the table has, for ordering and for telling events apart."""

_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


def is_text(kind: Any) -> bool:
    """Whether a column type holds text."""
    return kind == pl.String or kind == pl.Categorical or isinstance(kind, pl.Enum)


def clean_ids(frame: pl.DataFrame, table: Table, column: str, bad: BadRows) -> pl.DataFrame:
    """Ids as text or integers, none missing."""
    kind = frame.schema[column]
    if is_text(kind):
        frame = frame.with_columns(pl.col(column).cast(pl.String))
        missing = pl.col(column).is_null() | (pl.col(column) == "")
    elif kind.is_integer() or kind == pl.Null:
        missing = pl.col(column).is_null()
    elif kind.is_float():
        missing = pl.col(column).is_null() | pl.col(column).is_nan()
    else:
        raise table.wrong_type(column, "text or integers")
    frame = bad.keep(frame, table.file, column, missing, "the id is missing", "fill it in", show=False)
    if kind.is_float():
        # What a table of integers becomes where a value was missing.
        whole = pl.col(column).is_finite() & (pl.col(column) == pl.col(column).floor()) & (pl.col(column).abs() < 2**53)
        frame = bad.keep(frame, table.file, column, ~whole, "the id is no whole number", "give text or integers")
        frame = frame.with_columns(pl.col(column).cast(pl.Int64))
    return frame


def common_id_type(columns: Sequence[pl.Series], from_text: Sequence[bool]) -> pl.DataType:
    """The type in which ids of several tables compare: that of the first table wherever the others fit it.

    Text from a CSV counts as integers where every table's ids are written as integers.
    """

    def whole(series: pl.Series) -> bool:
        return bool(series.str.contains(_INTEGER).all())

    pairs = [(series, soft) for series, soft in zip(columns, from_text, strict=True) if len(series)]
    hard = [series for series, soft in pairs if not soft]
    if any(series.dtype == pl.String for series in hard) and not any(series.dtype.is_integer() for series in hard):
        return pl.String()
    if not all(series.dtype.is_integer() or whole(series) for series, _ in pairs):
        return pl.String()
    first: pl.DataType = next((series.dtype for series in hard if series.dtype.is_integer()), pl.Int64())
    for kind in (first, pl.Int64(), pl.UInt64()):
        if all(series.cast(kind, strict=False).null_count() == 0 for series, _ in pairs):
            return kind
    return pl.String()


def clean_time(frame: pl.DataFrame, table: Table, column: str, bad: BadRows, *, into: str = TIME) -> pl.DataFrame:
    """Times as whole seconds in ``column`` (floored), and in their own precision in ``into``."""
    kind = frame.schema[column]
    advice = "give an integer, a date or a datetime"
    if is_text(kind):
        if not table.from_text:
            raise table.wrong_type(column, "an integer, a date or a datetime")
        frame = _times_of_text(frame, table, column, bad)
        kind = frame.schema[column]
    if kind == pl.Null:
        kind = pl.Int64()
        frame = frame.with_columns(pl.col(column).cast(kind))
    if not (kind.is_numeric() or kind in (pl.Date, pl.Datetime)) or kind.is_decimal():
        raise table.wrong_type(column, "an integer, a date or a datetime")
    frame = bad.keep(frame, table.file, column, pl.col(column).is_null(), "the time is missing", advice)
    if kind.is_float():
        frame = bad.keep(
            frame, table.file, column, ~(pl.col(column).abs() < 2**53), "the time is no finite number", advice
        )
        return frame.with_columns(pl.col(column).alias(into), pl.col(column).floor().cast(pl.Int64))
    if kind.is_integer():
        fits = pl.col(column).cast(pl.Int64, strict=False)
        small = fits.is_between(-MOST_TIME, MOST_TIME, closed="none")
        frame = bad.keep(frame, table.file, column, ~small, "the time is too large", advice)
        return frame.with_columns(fits.alias(into), fits)
    fine = pl.col(column).cast(pl.Int64) if kind == pl.Datetime else pl.col(column).dt.epoch("s")
    return frame.with_columns(fine.alias(into), pl.col(column).dt.epoch("s").cast(pl.Int64).alias(column))


def _times_of_text(frame: pl.DataFrame, table: Table, column: str, bad: BadRows) -> pl.DataFrame:
    text = pl.col(column).cast(pl.String).str.strip_chars()
    parsed = frame.select(
        text.is_not_null().alias("given"),
        text.cast(pl.Int64, strict=False).alias("whole"),
        text.cast(pl.Float64, strict=False).alias("float"),
        # A zone would make a column of its own type; times of day in files without one are taken as UTC.
        text.str.to_datetime(time_zone="UTC", strict=False, time_unit="us", exact=True).alias("moment")
        if _has_dates(frame, text)
        else pl.lit(None, dtype=pl.Datetime("us", "UTC")).alias("moment"),
    )
    best = max(("whole", "float", "moment"), key=lambda name: int(parsed[name].count()))
    broken = parsed["given"] & parsed[best].is_null()
    if broken.any():
        marked = frame.with_columns(broken.alias("__broken"))
        kept = bad.keep(
            marked,
            table.file,
            column,
            pl.col("__broken"),
            "the time is no number and no date",
            "give an integer, a date or a datetime",
        )
        parsed = parsed.filter(~broken)
        frame = kept.drop("__broken")
    return frame.with_columns(parsed[best].alias(column))


def _has_dates(frame: pl.DataFrame, text: pl.Expr) -> bool:
    return bool(frame.select(text.str.contains(r"^\d{4}-\d{2}-\d{2}").any()).item())


def clean_number(frame: pl.DataFrame, table: Table, column: str, bad: BadRows) -> pl.DataFrame:
    """Numbers as float32; null = unknown, anything not finite is bad."""
    kind = frame.schema[column]
    if table.from_text and is_text(kind):
        number = pl.col(column).str.strip_chars().cast(pl.Float32, strict=False)
        broken = pl.col(column).is_not_null() & number.is_null()
        frame = bad.keep(frame, table.file, column, broken, "not a number", "give a number or leave it empty")
        frame = frame.with_columns(number)
    elif kind.is_numeric() or kind in (pl.Null, pl.Boolean):
        frame = frame.with_columns(pl.col(column).cast(pl.Float32))
    else:
        raise table.wrong_type(column, "numbers")
    broken = pl.col(column).is_not_null() & ~pl.col(column).is_finite()
    return bad.keep(frame, table.file, column, broken, "not a finite number", "leave it empty where it is unknown")


def clean_flag(frame: pl.DataFrame, table: Table, column: str, bad: BadRows) -> pl.DataFrame:
    """Booleans; 0 and 1, and the words true and false of a CSV, are taken too; null = false."""
    kind = frame.schema[column]
    if is_text(kind) and table.from_text:
        word = pl.col(column).str.strip_chars().str.to_lowercase()
        flag = word.replace_strict({"true": True, "1": True, "false": False, "0": False}, default=None)
        broken = pl.col(column).is_not_null() & flag.is_null()
        frame = bad.keep(frame, table.file, column, broken, "neither true nor false", "give true or false")
    elif kind.is_integer():
        broken = pl.col(column).is_not_null() & ~pl.col(column).is_in([0, 1])
        frame = bad.keep(frame, table.file, column, broken, "neither 0 nor 1", "give true or false")
        flag = pl.col(column) == 1
    elif kind in (pl.Boolean, pl.Null):
        flag = pl.col(column).cast(pl.Boolean)
    else:
        raise table.wrong_type(column, "true or false")
    return frame.with_columns(flag.fill_null(False).alias(column))


def clean_text(frame: pl.DataFrame, table: Table, column: str) -> pl.DataFrame:
    """Short names, such as surfaces, as text; numbers become their digits."""
    kind = frame.schema[column]
    if not (is_text(kind) or kind.is_integer() or kind in (pl.Null, pl.Boolean)):
        raise table.wrong_type(column, "text")
    return frame.with_columns(pl.col(column).cast(pl.String))
