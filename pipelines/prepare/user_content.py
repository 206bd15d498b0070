"""What a model may know of users besides their events: the columns that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.pipelines.prepare.bad_rows import ROW
from recsys.tokenizers.item_columns import MAX_CATEGORIES, READINGS
from recsys.tokenizers.table_columns import fit_columns, table_rows

__all__ = ["user_content", "user_readings"]


def user_readings(given: Sequence[str], users: pl.DataFrame | None) -> dict[str, str | None]:
    """``NAME`` or ``NAME:READING`` as names of columns and how to read them.

    Raises:
        InputError: the users table has no such column.
    """
    columns = [] if users is None else [name for name in users.columns if name not in ("user_id", ROW)]
    readings: dict[str, str | None] = {}
    for flag in given:
        name, colon, reading = flag.rpartition(":")
        if flag in columns or not colon or reading not in READINGS:
            name, reading = flag, ""
        if name not in columns:
            there = f" (there are: {', '.join(columns)})" if columns else ""
            raise InputError(f"--user-features {flag}: the users table has no such column{there}; check the name")
        readings[name] = reading or None
    return readings


def user_content(
    users: pl.DataFrame, given: Sequence[str], file: str
) -> tuple[list[dict[str, Any]], NDArray[np.float32], list[str]]:
    """Blocks of the columns that were asked for, their rows, and what people should know of them.

    Args:
        users: one row per user, in internal order.
        given: as on the command line. file: what messages call the users table.

    Raises:
        InputError: a column cannot be read.
    """
    ids = users["user_id"]
    try:
        blocks = fit_columns(users, ids, user_readings(given, users))
        row_UK = table_rows(blocks, users, ids)
    except ValueError as error:
        raise InputError(f"--user-features: {file}, {error}") from error
    notes = []
    for block in blocks:
        if not row_UK[:, block["start"] : block["stop"]].any():
            notes.append(f"The user feature {block['name']} says nothing: it is empty or the same for every user.")
        elif block["kind"] == "categories" and block["num_values"] > MAX_CATEGORIES:
            notes.append(
                f"The user feature {block['name']} has {block['num_values']} values of more than one user; "
                f"the {MAX_CATEGORIES} most frequent are read."
            )
    return blocks, row_UK, notes
