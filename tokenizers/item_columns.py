"""Columns of a table as numbers that a model can read: fitted on a catalogue, applied to any later row.

A fitted column is a plain dictionary that JSON can hold. Entries are about 1 in size; an item that lacks something
has zeros there.
Suffixes: I = items, G = items with a value, K = columns made of one column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["MAX_CATEGORIES", "READINGS", "column_rows", "directions", "fit_column"]

MAX_CATEGORIES = 64
"""The most frequent values of a categorical column that get a content column."""
READINGS = ("category", "list", "vector")
"""How a column may be asked to be read where its type does not say it."""
_MOST_DEVIATIONS = 5.0
"""Numbers further from the mean count as this far: huge ones would drown all else that is known of their items."""
_LARGEST = 1e140
"""Squares of larger numbers are infinite."""
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ].*)?$"
_SEPARATORS = r"[^,;|>]+"
"""One entry of a list that is written as text."""
_NUMBER = r"[^\s,;|\[\]()]+"

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def fit_column(column: pl.Series, ids: pl.Series, reading: str | None = None) -> dict[str, Any]:
    """Find out how a column is read, and the numbers that its transform needs.

    Args:
        column: one value per item.
        ids: what messages call the items.
        reading: one of :data:`READINGS`; None = as the type of the column suggests.

    Returns:
        ``kind`` (number, time, categories or vector) and the numbers.

    Raises:
        ValueError: the column has a type that cannot be read, or a broken vector.
    """
    kind = column.dtype
    lists = isinstance(kind, (pl.List, pl.Array))
    inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else None
    if reading == "vector" or (reading is None and inner is not None and inner.is_float()):
        row_GK, _ = _vectors(column, ids, None)
        return {"kind": "vector", "mean": row_GK.mean(axis=0).tolist() if len(row_GK) else [0.0] * row_GK.shape[1]}
    if reading is None and lists and not _nameable(inner):
        raise ValueError(f"a feature of type {kind} cannot be read; give lists of names or numbers")
    if reading is not None or lists or _is_text(kind):
        if reading is None and _is_text(kind) and _are_dates(column):
            return {"kind": "time", **_spread(column, "time")}
        names, num_names = _frequent(_named(column, split=reading == "list"))
        return {"kind": "categories", "split": reading == "list", "categories": names, "num_values": num_names}
    if kind in (pl.Date, pl.Datetime):
        return {"kind": "time", **_spread(column, "time")}
    if kind.is_numeric() or kind in (pl.Boolean, pl.Duration, pl.Null):
        return {"kind": "number", **_spread(column, "number")}
    raise ValueError(
        f"a feature of type {kind} cannot be read; give numbers, text, dates, or lists of names or numbers"
    )


def column_rows(fitted: dict[str, Any], column: pl.Series, ids: pl.Series) -> Floats:
    """[I, K] what :func:`fit_column` learned, applied to a column that may have grown new values.

    Raises:
        ValueError: the values cannot be read as those of the fitted column.
    """
    kind = fitted["kind"]
    if kind in ("number", "time"):
        value_I = _numbers(column, kind)
        known_I = np.isfinite(value_I)
        scale = fitted["std"] if fitted["std"] > 0 else np.inf
        away_I = np.where(known_I, np.where(known_I, value_I, fitted["mean"]) - fitted["mean"], 0.0) / scale
        return np.clip(away_I, -_MOST_DEVIATIONS, _MOST_DEVIATIONS).astype(np.float32)[:, None]
    if kind == "categories":
        hot_IK = np.zeros((len(column), len(fitted["categories"])), dtype=np.float32)
        places = pl.DataFrame({"value": fitted["categories"]}, schema={"value": pl.String}).with_row_index("place")
        found = _named(column, split=fitted["split"]).join(places, on="value", how="inner")
        hot_IK[found["item"].to_numpy(), found["place"].to_numpy()] = 1.0
        return hot_IK
    if kind == "vector":
        row_GK, given_I = _vectors(column, ids, len(fitted["mean"]))
        whole_IK = np.zeros((len(column), len(fitted["mean"])), dtype=np.float32)
        whole_IK[given_I] = directions(row_GK, np.asarray(fitted["mean"])) * len(fitted["mean"]) ** 0.5
        return whole_IK
    raise ValueError(f"columns of kind {kind!r} are unknown here; prepare the data again with this version")


def directions(row_GK: NDArray[Any], mean_K: Doubles) -> Doubles:
    """[G, K] rows of unit length after the mean is taken away; zero where nothing but rounding is left."""
    row_GK = np.asarray(row_GK, dtype=np.float64)
    centred_GK = row_GK - mean_K
    length_G1 = np.linalg.norm(centred_GK, axis=1, keepdims=True)
    noise_G1 = 1e-6 * (np.linalg.norm(row_GK, axis=1, keepdims=True) + np.linalg.norm(mean_K))
    return np.where(length_G1 > noise_G1, centred_GK / np.maximum(length_G1, 1e-300), 0.0)


# -- numbers and times -----------------------------------------------------------------------------------------------


def _numbers(column: pl.Series, kind: str) -> Doubles:
    """[I] as doubles; NaN where unknown."""
    try:
        if kind == "time" and _is_text(column.dtype):
            column = column.cast(pl.String).str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
        if column.dtype in (pl.Date, pl.Datetime):
            column = column.dt.epoch("s")
        elif column.dtype == pl.Duration:
            column = column.dt.total_microseconds() / 1e6
        value_I: Doubles = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    except pl.exceptions.PolarsError:
        raise ValueError(f"{column.dtype} is no column of {kind}s, which it was when the data was prepared") from None
    return np.clip(value_I, -_LARGEST, _LARGEST, where=np.isfinite(value_I), out=np.full_like(value_I, np.nan))


def _spread(column: pl.Series, kind: str) -> dict[str, float]:
    value_I = _numbers(column, kind)
    value_G = value_I[np.isfinite(value_I)]
    if not len(value_G):
        return {"mean": 0.0, "std": 0.0}
    mean, std = float(value_G.mean()), float(value_G.std())
    return {"mean": mean, "std": std if std > 1e-12 * abs(mean) else 0.0}  # equal numbers, but for rounding


def _are_dates(column: pl.Series) -> bool:
    text = column.cast(pl.String).drop_nulls()
    if not len(text) or not text.str.contains(_ISO_DATE).all():
        return False
    return text.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).null_count() == 0


# -- categories ------------------------------------------------------------------------------------------------------


def _is_text(kind: Any) -> bool:
    return kind == pl.String or kind == pl.Categorical or isinstance(kind, pl.Enum)


def _nameable(kind: Any) -> bool:
    return _is_text(kind) or kind.is_integer() or kind in (pl.Null, pl.Boolean)


def _named(column: pl.Series, *, split: bool) -> pl.DataFrame:
    """Rows (item, value), each pair once; values as text without blanks around them."""
    if split and _is_text(column.dtype):
        column = column.cast(pl.String).str.extract_all(_SEPARATORS)
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    flat = pl.DataFrame({"item": pl.int_range(len(column), eager=True), "value": column})
    if isinstance(column.dtype, pl.List):
        flat = flat.explode("value")
    if flat.schema["value"].is_float():
        # Whole numbers where some are missing are often kept as floats: 3.0 is the name 3.
        whole = pl.col("value").cast(pl.Int64, strict=False)
        plain = pl.when(pl.col("value") == whole).then(whole.cast(pl.String))
        flat = flat.with_columns(plain.otherwise(pl.col("value").fill_nan(None).cast(pl.String)).alias("value"))
    try:
        flat = flat.with_columns(pl.col("value").cast(pl.String).str.strip_chars())
    except pl.exceptions.PolarsError:
        raise ValueError(f"values of type {flat.schema['value']} cannot be read as names; give text") from None
    return flat.filter(pl.col("value").is_not_null() & (pl.col("value") != "")).unique(maintain_order=True)


def _frequent(flat: pl.DataFrame) -> tuple[list[str], int]:
    """Values of more than one item, most frequent first, and how many there are."""
    counts = flat.group_by("value").len().filter(pl.col("len") > 1)
    # Ties by name, so that the same table gives the same columns.
    names = counts.sort(["len", "value"], descending=[True, False])["value"]
    return names.head(MAX_CATEGORIES).to_list(), len(names)


# -- vectors ---------------------------------------------------------------------------------------------------------


def _vectors(column: pl.Series, ids: pl.Series, dim: int | None) -> tuple[Doubles, NDArray[np.bool_]]:
    """The vectors that are there as rows [G, K], and which items have one [I]."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if _is_text(column.dtype):
        column = column.cast(pl.String).str.extract_all(_NUMBER)
    if column.dtype == pl.Null:
        column = column.cast(pl.List(pl.Float64))
    if not isinstance(column.dtype, pl.List):
        raise ValueError(f"a column of type {column.dtype} holds no vectors; give lists of numbers")
    try:
        number = column.cast(pl.List(pl.Float64), strict=False)
    except pl.exceptions.PolarsError:
        raise ValueError(f"a column of type {column.dtype} holds no vectors; give lists of numbers") from None
    length_I = number.list.len().fill_null(0).to_numpy()
    given_I: NDArray[np.bool_] = length_I > 0
    dim = int(length_I.max(initial=0)) if dim is None else dim
    flat = number.filter(pl.Series(given_I)).explode().fill_null(float("nan")).to_numpy()
    broken_I = given_I & (length_I != dim)
    unfit = np.flatnonzero(~np.isfinite(flat))
    broken_I[np.repeat(np.flatnonzero(given_I), length_I[given_I])[unfit]] = True
    if broken_I.any():
        raise ValueError(
            f"id {ids[int(broken_I.argmax())]!r}: a vector must hold {dim} finite numbers; mend it or leave it empty"
        )
    return flat.astype(np.float64).reshape(-1, dim) if len(flat) else np.zeros((0, dim)), given_I
