"""The items and the users table, and the internal numbers of ids."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from recsys.pipelines.prepare.bad_rows import ROW, BadRows
from recsys.pipelines.prepare.columns import clean_ids, is_text
from recsys.pipelines.prepare.reading import Table, typed

__all__ = ["clean_entities", "entity_table", "numbered", "vocabulary_of"]

_TEXTS = ("title", "text")


def clean_entities(table: Table, column: str, bad: BadRows) -> pl.DataFrame:
    """Rows of an items or users table: one per id, title and text as text, all other columns as they came.

    Raises:
        InputError: the id column is missing, or a row is bad and bad rows are errors.
    """
    table.need(column)
    frame = table.frame
    if table.from_text:
        texts = {column, ROW, *_TEXTS}
        rest = [name for name in frame.columns if name not in texts]
        frame = frame.with_columns(typed(frame.select(rest))) if rest else frame
    for name in _TEXTS:
        kind = frame.schema.get(name)
        if kind is None or column != "item_id":
            continue
        if not (is_text(kind) or kind == pl.Null):
            raise table.wrong_type(name, "text")
        frame = frame.with_columns(pl.col(name).cast(pl.String))
    frame = clean_ids(frame, table, column, bad)
    again = ~pl.col(column).is_first_distinct()
    return bad.keep(frame, table.file, column, again, "the id stands in an earlier row too", "keep one row per id")


def vocabulary_of(columns: Sequence[pl.Series], kind: pl.DataType) -> pl.Series:
    """Distinct ids of several columns in order of first appearance; the place is the internal number."""
    return pl.concat([series.cast(kind).unique(maintain_order=True).rename("id") for series in columns]).unique(
        maintain_order=True
    )


def numbered(frame: pl.DataFrame, column: str, ids: pl.Series, name: str) -> pl.DataFrame:
    """``frame`` with ids replaced by internal numbers (UInt32; null where the vocabulary lacks the id)."""
    known = pl.DataFrame({column: ids, name: pl.int_range(len(ids), dtype=pl.UInt32, eager=True)})
    kinds = frame.with_columns(pl.col(column).cast(ids.dtype))
    return kinds.join(known, on=column, how="left", maintain_order="left").drop(column)


def entity_table(ids: pl.Series, column: str, rows: pl.DataFrame | None) -> pl.DataFrame:
    """Row i = id i, with the columns of its row in ``rows`` where there is one."""
    table = pl.DataFrame({column: ids})
    if rows is None:
        return table
    rows = rows.drop(ROW).with_columns(pl.col(column).cast(ids.dtype))
    return table.join(rows, on=column, how="left", maintain_order="left")
