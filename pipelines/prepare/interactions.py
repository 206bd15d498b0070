"""The interactions table: checked, brought to internal numbers, ordered and united."""

from __future__ import annotations

import polars as pl

from recsys.pipelines.prepare.actions import ActionVocabulary, action_key
from recsys.pipelines.prepare.bad_rows import ROW, BadRows
from recsys.pipelines.prepare.columns import TIME, clean_flag, clean_ids, clean_number, clean_text, clean_time
from recsys.pipelines.prepare.reading import Table, renamed, typed

__all__ = ["ACTION", "UNKNOWN", "clean_interactions", "packed_events", "unite", "with_masks"]

ACTION = "__action"
UNKNOWN = "__unknown"
_OURS = {"user_id", "item_id", "timestamp", "action", "unknown", "value", "surface", "time_known", ROW}
_PACKED = ("user", "item", "timestamp", "yes", "known", "surface", "value", "time_known")


def clean_interactions(table: Table, bad: BadRows) -> pl.DataFrame:
    """Checked rows: ids, ``timestamp`` and ``columns.TIME``, action keys, surface as text, value, time_known, the rest.

    Raises:
        InputError: a column is missing or of the wrong type, or a row is bad and bad rows are errors.
    """
    table.need("user_id", "item_id", "timestamp", "action")
    frame = table.frame
    keys = [action_key(table, "action").alias(ACTION)]
    if "unknown" in frame.columns:
        keys.append(action_key(table, "unknown").alias(UNKNOWN))
    extra = [name for name in frame.columns if name not in _OURS]
    if table.from_text and extra:
        frame = frame.with_columns(typed(frame.select(extra)))
    frame = frame.with_columns(keys).drop("action", "unknown", strict=False)
    for column in ("user_id", "item_id"):
        frame = clean_ids(frame, table, column, bad)
    frame = clean_time(frame, table, "timestamp", bad)
    if "value" in frame.columns:
        frame = clean_number(frame, table, "value", bad)
    if "time_known" in frame.columns:
        frame = clean_flag(frame, table, "time_known", bad)
    if "surface" in frame.columns:
        frame = clean_text(frame, table, "surface")
    # Names that the packed table uses itself.
    return frame.rename(renamed(extra, _PACKED, "input_"))


def with_masks(frame: pl.DataFrame, actions: ActionVocabulary) -> pl.DataFrame:
    """Action keys replaced by the masks ``yes`` and ``known``: what is not said to be unknown is known."""
    yes = actions.bits(frame[ACTION]).alias("yes")
    if UNKNOWN in frame.columns:
        silent = actions.bits(frame[UNKNOWN])
        known = (yes | (silent ^ actions.every)).alias(
            "known"
        )  # an action that happened is known, whatever else is said
    else:
        known = pl.repeat(actions.every, len(frame), dtype=pl.UInt32, eager=True).alias("known")
    return frame.drop(ACTION, UNKNOWN, strict=False).with_columns(yes, known)


def unite(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Sort by (user, time, row) and make one event of rows equal in user, item and time.

    The event stands at the place of the first of its rows; actions are united; value and surface are the first known.

    Returns:
        The events, and how many rows went into another one.
    """
    frame = frame.sort("user", TIME, ROW)
    # Equal rows share a run of equal (user, time): only such runs are grouped.
    same = (pl.col("user") == pl.col("user").shift(1)) & (pl.col(TIME) == pl.col(TIME).shift(1))
    run = same.fill_null(False) | same.shift(-1).fill_null(False)
    shared = frame.filter(run)
    if shared.height == 0:
        return frame, 0
    key = ["user", "item", TIME]
    rules = {
        "yes": pl.col("yes").bitwise_or(),
        "known": pl.col("known").bitwise_or(),
        "value": pl.col("value").drop_nulls().first(),
        "surface": pl.col("surface").drop_nulls().first(),
        "time_known": pl.col("time_known").any(),
    }
    rest = [name for name in frame.columns if name not in key]
    united = shared.group_by(key, maintain_order=True).agg(rules.get(name, pl.col(name).first()) for name in rest)
    num_united = shared.height - united.height
    if num_united == 0:
        return frame, 0
    whole = pl.concat([frame.filter(~run), united.select(frame.columns)])
    return whole.sort("user", TIME, ROW), num_united


def packed_events(frame: pl.DataFrame, surfaces: list[str]) -> pl.DataFrame:
    """The table of ``events.parquet``: our columns in their types, then the callers' own."""
    number = {name: place for place, name in enumerate(surfaces)}
    packed = frame.with_columns(
        pl.col("surface").cast(pl.String).replace_strict(number, default=0, return_dtype=pl.UInt16).fill_null(0)
    )
    return packed.select(*_PACKED, *[name for name in packed.columns if name not in (*_PACKED, ROW, TIME)])
