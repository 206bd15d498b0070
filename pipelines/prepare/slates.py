"""The impressions table: slates checked, flattened, brought to internal numbers and given to the splits.

A flat frame has one row per item shown; ``bad_rows.ROW`` is the row of its slate in the file.
"""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from recsys.pipelines.prepare.actions import action_key
from recsys.pipelines.prepare.bad_rows import ROW, BadRows
from recsys.pipelines.prepare.columns import clean_ids, clean_number, clean_text, clean_time, is_text
from recsys.pipelines.prepare.interactions import ACTION, UNKNOWN
from recsys.pipelines.prepare.reading import Table, renamed, typed

__all__ = [
    "NO_SPLIT",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "clean_slates",
    "packed_slates",
    "split_by_targets",
    "split_by_times",
]

TRAIN, VALIDATION, TEST, NO_SPLIT = 0, 1, 2, 3
"""What the column ``split`` holds."""

_LISTS = {"item_ids": "item_id", "actions": "action", "surfaces": "surface", "times": "time", "values": "value"}
"""Parallel list columns and what one entry is called."""
_OURS = {"slate_id", "user_id", "timestamp", "unknown", ROW, *_LISTS}
_PACKED = ("slate_id", "user", "timestamp", "items", "yes", "known", "surfaces", "times", "values", "split")
_ORDER = "__time"
_RANK = "__rank"


def clean_slates(table: Table, bad: BadRows) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Checked slates, flat, and what the callers say of whole slates.

    Returns:
        Rows (``ROW``, slate_id, user_id, timestamp, item_id, action keys, surface, time, value) in the order shown,
        and one row per slate with the callers' other columns.

    Raises:
        InputError: a column is missing or of the wrong type, or a row is bad and bad rows are errors.
    """
    table.need("slate_id", "user_id", "timestamp", "item_ids", "actions")
    frame = table.frame
    extra = [name for name in frame.columns if name not in _OURS]
    if table.from_text and extra:
        frame = frame.with_columns(typed(frame.select(extra)))
    names = renamed(extra, _PACKED, "input_")
    frame, extra = frame.rename(names), [names.get(name, name) for name in extra]
    if "unknown" in frame.columns:
        frame = frame.with_columns(action_key(table, "unknown").alias(UNKNOWN))
    for column in ("slate_id", "user_id"):
        frame = clean_ids(frame, table, column, bad)
    again = ~pl.col("slate_id").is_first_distinct()
    frame = bad.keep(frame, table.file, "slate_id", again, "the id stands in an earlier row too", "keep one row per id")
    frame = clean_time(frame, table, "timestamp", bad, into=_ORDER)
    lists = [name for name in _LISTS if name in frame.columns]
    for name in lists:
        frame = _as_list(frame, table, name, bad)
    length = pl.col("item_ids").list.len()
    frame = bad.keep(frame, table.file, "item_ids", (length == 0).fill_null(True), "the slate is empty", "fill it in")
    for name in lists[1:]:
        # A slate may say nothing at all about surfaces, times or values; about actions it must.
        ragged = (pl.col(name).list.len() != length).fill_null(name == "actions")
        frame = bad.keep(
            frame, table.file, name, ragged, "its length is not that of item_ids", "give one entry per item"
        )
    whole = frame.select(ROW, *extra)
    flat = _flat(frame, table, lists, bad)
    return flat, whole.filter(pl.col(ROW).is_in(flat[ROW].unique().implode()))


def _as_list(frame: pl.DataFrame, table: Table, column: str, bad: BadRows) -> pl.DataFrame:
    kind = frame.schema[column]
    if isinstance(kind, pl.Array):
        return frame.with_columns(pl.col(column).arr.to_list())
    if isinstance(kind, pl.List):
        return frame
    if kind == pl.Null and column != "item_ids":
        return frame.with_columns(pl.col(column).cast(pl.List(pl.String)))
    if not (is_text(kind) and table.from_text):
        raise table.wrong_type(column, "a list")
    # A CSV holds lists as JSON.
    parsed = [_json_list(text) for text in frame[column].to_list()]
    broken = pl.Series("__broken", [entry is False for entry in parsed])
    lists = pl.Series(column, [None if entry is False else entry for entry in parsed], dtype=pl.List(pl.String))
    marked = frame.with_columns(broken)
    kept = bad.keep(marked, table.file, column, pl.col("__broken"), "not a JSON list", "write it as [1, 2]")
    return kept.drop("__broken").with_columns(lists.filter(~broken))


def _json_list(text: str | None) -> list[str | None] | None | bool:
    """Entries as text; None stays None, False = not a list."""
    if text is None:
        return None
    try:
        entries = json.loads(text)
    except json.JSONDecodeError:
        return False
    if not isinstance(entries, list):
        return False
    return [
        None if entry is None else "+".join(map(str, entry)) if isinstance(entry, list) else str(entry)
        for entry in entries
    ]


def _entry(kind: Any) -> pl.DataType:
    """Type of the entries of a list type."""
    inner: pl.DataType = kind.inner
    return inner


def _flat(frame: pl.DataFrame, table: Table, lists: list[str], bad: BadRows) -> pl.DataFrame:
    slate = ["slate_id", "user_id", "timestamp", _ORDER, ROW, *([UNKNOWN] if UNKNOWN in frame.columns else [])]
    length = pl.col("item_ids").list.len()
    padded = [
        pl.when(pl.col(name).is_null())
        .then(pl.lit(None, dtype=_entry(frame.schema[name])).repeat_by(length))
        .otherwise(pl.col(name))
        .alias(name)
        for name in lists
    ]
    flat = frame.select(*slate, pl.int_ranges(length).alias(_RANK), *padded).explode(_RANK, *lists)
    # Entries keep the names of their lists while they are checked, so that messages say these.
    rows = Table(table.file, flat, table.from_text)
    flat = flat.with_columns(action_key(rows, "actions").alias(ACTION)).drop("actions")
    known = flat
    flat = clean_ids(flat, rows, "item_ids", bad)
    if "values" in flat.columns:
        flat = clean_number(flat, rows, "values", bad)
    if "surfaces" in flat.columns:
        flat = clean_text(flat, rows, "surfaces")
    if "times" in flat.columns:
        if flat.schema["times"] in (pl.Null, pl.String) and flat["times"].null_count() == len(flat):
            flat = flat.with_columns(pl.col("timestamp").alias("times"))
        else:
            timed = flat.filter(pl.col("times").is_not_null())
            timed = clean_time(timed, rows, "times", bad, into="__fine").drop("__fine")
            silent = flat.filter(pl.col("times").is_null()).with_columns(pl.col("timestamp").alias("times"))
            flat = pl.concat([timed, silent.select(timed.columns)]).sort(ROW, _RANK)
    else:
        flat = flat.with_columns(pl.col("timestamp").alias("times"))
    flat = flat.rename({name: _LISTS[name] for name in (*lists, "times") if name in flat.columns})
    for name, kind in (("value", pl.Float32), ("surface", pl.String)):
        if name not in flat.columns:
            flat = flat.with_columns(pl.lit(None, dtype=kind).alias(name))
    # A slate with one bad entry is bad as a whole: its shown ranks would shift.
    lost = known[ROW].unique().to_frame().join(flat.group_by(ROW).len(), on=ROW, how="left")
    before = known.group_by(ROW).len(name="before")
    whole = lost.join(before, on=ROW).filter(pl.col("len") == pl.col("before"))
    return flat.join(whole.select(ROW), on=ROW, how="semi").sort(ROW, _RANK)


def split_by_targets(flat: pl.DataFrame, targets: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Leave-one-out: which slates may train, and which belong to validation and test.

    Training slates end before the first held-out target of their user and do not hold it; those of users without a
    target train. Validation slates start after the validation target and before the test target, test slates after
    it. What a validation slate shows at or after the test target, or of its item, is left out.

    Args:
        flat: rows of slates with internal ``user`` and ``item``.
        targets: one row per user: user, valid_item, valid_time, test_item, test_time; null = no such target.

    Returns:
        The rows with the column ``split``, and how many were left out.
    """
    rows = flat.join(targets, on="user", how="left", maintain_order="left")
    start, end = pl.col("time").min().over(ROW), pl.col("time").max().over(ROW)
    held_item = pl.coalesce("valid_item", "test_item")
    held_time = pl.coalesce("valid_time", "test_time")
    holds = (pl.col("item") == held_item).any().over(ROW)
    trains = held_time.is_null() | ((end < held_time) & ~holds)
    validates = (start > pl.col("valid_time")) & (start < pl.col("test_time"))
    split = (
        pl.when(trains).then(TRAIN).when(validates).then(VALIDATION).when(start > pl.col("test_time")).then(TEST)
    )  # fmt: skip
    rows = rows.with_columns(split.otherwise(NO_SPLIT).cast(pl.UInt8).alias("split"))
    late = (pl.col("time") >= pl.col("test_time")) | (pl.col("item") == pl.col("test_item"))
    kept = rows.filter(~((pl.col("split") == VALIDATION) & late))
    return kept.select(*flat.columns, "split"), rows.height - kept.height


def split_by_times(flat: pl.DataFrame, *, valid_from: int, test_from: int) -> tuple[pl.DataFrame, int]:
    """Absolute times: a slate belongs by its first time; rows exposed at or after the end of its period are left out.

    Returns:
        The rows with the column ``split``, and how many were left out.
    """
    start = pl.col("time").min().over(ROW)
    split = pl.when(start < valid_from).then(TRAIN).when(start < test_from).then(VALIDATION).otherwise(TEST)
    rows = flat.with_columns(split.cast(pl.UInt8).alias("split"))
    late = ((pl.col("split") == TRAIN) & (pl.col("time") >= valid_from)) | (
        (pl.col("split") == VALIDATION) & (pl.col("time") >= test_from)
    )
    kept = rows.filter(~late)
    return kept, rows.height - kept.height


def packed_slates(flat: pl.DataFrame, whole: pl.DataFrame, surfaces: list[str]) -> pl.DataFrame:
    """The table of ``slates.parquet``: one row per slate by (user, time, row), lists in the order shown.

    The time of a slate is never later than its first exposure, so that what happened in it stays out of the history
    that it is judged from.
    """
    number = {name: place for place, name in enumerate(surfaces)}
    slates = (
        flat.sort(ROW, _RANK)
        .group_by(ROW, maintain_order=True)
        .agg(
            pl.col("slate_id").first(),
            pl.col("user").first(),
            pl.min_horizontal(pl.col("timestamp").first(), pl.col("time").min()).alias("timestamp"),
            pl.col(_ORDER).first(),
            pl.col("item").alias("items"),
            pl.col("yes"),
            pl.col("known"),
            pl.col("surface").replace_strict(number, default=0, return_dtype=pl.UInt16).fill_null(0).alias("surfaces"),
            pl.col("time").alias("times"),
            pl.col("value").alias("values"),
            pl.col("split").first(),
        )
        .sort("user", "timestamp", _ORDER, ROW)
        .join(whole, on=ROW, how="left", maintain_order="left")
    )
    return slates.select(*_PACKED, *[name for name in whole.columns if name != ROW])
