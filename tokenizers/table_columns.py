"""Columns of a table side by side, as one matrix that a model reads; for tables that hold nothing but columns.

A fitted column is a block: its name, its range in the matrix, and what
:func:`~recsys.tokenizers.item_columns.fit_column` found out.
Suffixes: I = rows of the table, K = columns of the matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.tokenizers.item_columns import column_rows, fit_column

__all__ = ["column_labels", "fit_columns", "table_rows"]


def fit_columns(table: pl.DataFrame, ids: pl.Series, readings: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Blocks of some columns.

    Args:
        ids: what messages call the rows.
        readings: columns, and how each is read; None = as its type suggests.

    Raises:
        ValueError: a column cannot be used.
    """
    blocks: list[dict[str, Any]] = []
    start = 0
    for name, reading in readings.items():
        try:
            fitted = fit_column(table[name], ids, reading)
            width = column_rows(fitted, table[name][:0], ids[:0]).shape[1]
        except ValueError as error:
            raise ValueError(f"column {name}: {error}") from error
        blocks.append({"name": name, **fitted, "start": start, "stop": start + width})
        start += width
    return blocks


def table_rows(blocks: Sequence[Mapping[str, Any]], table: pl.DataFrame, ids: pl.Series) -> NDArray[np.float32]:
    """[I, K] float32; zeros for what a row lacks, and for columns that the table lacks.

    Raises:
        ValueError: a column has values of another kind than when it was fitted.
    """
    width = blocks[-1]["stop"] if blocks else 0
    out_IK = np.zeros((table.height, width), dtype=np.float32)
    for block in blocks:
        if block["name"] in table.columns:
            try:
                out_IK[:, block["start"] : block["stop"]] = column_rows(dict(block), table[block["name"]], ids)
            except ValueError as error:
                raise ValueError(f"column {block['name']}: {error}") from error
    return out_IK


def column_labels(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each column of the matrix says, by a name that a later table shares.

    >>> column_labels([{"name": "city", "kind": "categories", "categories": ["Rome"], "start": 0, "stop": 1}])
    ['city = Rome']
    """
    labels: list[str] = []
    for block in blocks:
        name, width = block["name"], block["stop"] - block["start"]
        if block["kind"] == "categories":
            labels += [f"{name} = {value}" for value in block["categories"]]
        else:
            labels += [name] if width == 1 else [f"{name} [{place}]" for place in range(width)]
    return labels
