"""The columns of the items as rules read them; masks of filters are kept.

Suffixes: I = items, C = candidates, N = items that pass.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import InputError, shown
from recsys.retrieval.rules.rule import Value, Where

__all__ = ["Allowed", "ItemTable"]

_BYTES = 1 << 28
"""Memory for masks of filters and the values that they compare with; the least recently used go first."""
_MOST = 1024
_LEAST = 4
"""Masks that stay, whatever they take."""
_WIDE = 2**126

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """Items that pass some filters. Compared by identity: one object per set of filters and snapshot."""

    mask_I: NDArray[np.bool_]
    ids_N: Ints
    """Rising."""


class ItemTable:
    """Reads the columns of an item table; safe to use from many threads."""

    def __init__(self, items: pl.DataFrame, gone: Ints | None = None) -> None:
        """Row i of ``items`` is item i; those of ``gone`` pass no filter."""
        self.items = items
        self._gone = np.zeros(0, dtype=np.int64) if gone is None else gone
        self._lock = threading.Lock()
        self._kept: OrderedDict[frozenset[Where], Allowed] = OrderedDict()
        self._num_bytes = 0

    def check(self, column: str, rule: str) -> None:
        """Refuse a column that the items do not have.

        Raises:
            InputError: names the columns that there are.
        """
        if column not in self.items.columns:
            there = ", ".join(self.items.columns)
            raise InputError(f"{rule}: the items have no column {shown(column)}; they have {there}")

    def allowed(self, filters: Iterable[Where]) -> Allowed:
        """Items that pass all filters; from memory where the same filters were asked for before.

        Raises:
            InputError: a column that is not there, or values of another type than its own.
        """
        wanted = frozenset(filters)
        for one in wanted:
            self._comparable(one)
        with self._lock:
            kept = self._kept.get(wanted)
            if kept is not None:
                self._kept.move_to_end(wanted)
                return kept
        mask_I = np.ones(len(self.items), dtype=np.bool_)
        for one in wanted:
            mask_I &= self._mask(one)
        mask_I[self._gone] = False
        made = Allowed(mask_I, np.flatnonzero(mask_I).astype(np.int64))
        with self._lock:
            if wanted in self._kept:  # somebody else was faster
                return self._kept[wanted]
            self._kept[wanted] = made
            self._num_bytes += _held_bytes(wanted, made)
            while len(self._kept) > _LEAST and (self._num_bytes > _BYTES or len(self._kept) > _MOST):
                self._num_bytes -= _held_bytes(*self._kept.popitem(last=False))
        return made

    def groups(self, column: str, item_C: Ints) -> list[tuple[Hashable, ...]]:
        """Values of a column per item: none where it is missing, several of a list column, each once."""
        series = self.items[column].gather(item_C)
        if series.dtype.is_float():
            series = series.fill_nan(None)
        values = series.to_list()
        if isinstance(series.dtype, (pl.List, pl.Array)):
            return [tuple({one for one in row or () if one is not None and one == one}) for row in values]
        return [() if value is None else (value,) for value in values]

    def check_groups(self, column: str) -> None:
        """Refuse a column whose values cannot be counted."""
        self.check(column, "Cap")
        kind = _inner(self.items.schema[column])
        if kind.is_nested() or kind in (pl.Binary, pl.Object):
            raise InputError(f"Cap: column {column!r} holds {kind}, which cannot be counted; name a column of values")

    def seconds(self, column: str, item_C: Ints) -> NDArray[np.float64]:
        """[C] float64 times of items, seconds since 1970 where they are dates; NaN where missing."""
        series = self.items[column].gather(item_C)
        if series.dtype in (pl.Date, pl.Datetime):
            series = _microseconds(series) / 1e6
        return series.cast(pl.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)

    def check_times(self, column: str, *, clock: str) -> None:
        """Refuse a column that holds no times, or dates where timestamps only count."""
        self.check(column, "Freshness")
        kind = self.items.schema[column]
        if kind in (pl.Date, pl.Datetime):
            if clock != "real":
                raise InputError(
                    f"Freshness: column {column!r} holds dates, but timestamps of this data only count; name a column "
                    "that counts as they do"
                )
        elif not kind.is_numeric():
            raise InputError(f"Freshness: column {column!r} holds {kind}; name one of dates, datetimes or seconds")

    def _comparable(self, rule: Where) -> None:
        """Values and bounds are of the column's own kind."""
        self.check(rule.column, "Where")
        kind = _inner(self.items.schema[rule.column])
        text = kind in (pl.String, pl.Categorical, pl.Enum)
        for value in (*rule.operands, *rule.bounds):
            if kind == pl.Boolean:
                fits = isinstance(value, bool)
            elif kind.is_numeric():
                fits = isinstance(value, (int, float)) and not isinstance(value, bool)
            elif kind in (pl.Date, pl.Datetime):
                fits = isinstance(value, date) or (isinstance(value, str) and _is_iso(value))
            else:
                fits = text and isinstance(value, str)
            if not fits:
                found = f"column {rule.column!r} holds {kind}"
                raise InputError(f"Where: {found}, which cannot be compared with {shown(value)}")
        if rule.bounds and (text or kind == pl.Boolean):
            raise InputError(f"Where: column {rule.column!r} holds {kind}; at_least and at_most are for numbers, dates")

    def _mask(self, rule: Where) -> NDArray[np.bool_]:
        series = self.items[rule.column]
        row_V = np.arange(len(series))
        if isinstance(series.dtype, pl.Array):
            series = series.arr.to_list()
        if isinstance(series.dtype, pl.List):
            length_I = series.list.len().fill_null(0).to_numpy().astype(np.int64)
            row_V = np.repeat(row_V, length_I)
            series = series.filter(pl.Series(length_I > 0)).explode()
        if series.dtype.is_float():
            series = series.fill_nan(None)
        has_V = series.is_not_null().to_numpy()
        has_I = np.bincount(row_V[has_V], minlength=len(self.items)) > 0
        passes_V = _passes(series, rule).fill_null(False).to_numpy()
        passes_I = np.bincount(row_V[passes_V], minlength=len(self.items)) > 0
        found_I: NDArray[np.bool_] = np.where(has_I, passes_I ^ rule.negate, rule.missing)
        return found_I


def _held_bytes(filters: Iterable[Where], allowed: Allowed) -> int:
    """Of a mask and of what it is found by; a value takes 64 bytes, and a text those of its letters."""
    values = [value for one in filters for value in one.operands]
    letters = sum(4 * len(value) for value in values if isinstance(value, str))
    return allowed.mask_I.nbytes + allowed.ids_N.nbytes + 64 * len(values) + letters


def _inner(kind: pl.DataType) -> pl.DataType:
    """The type of one value of a column."""
    inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else kind
    return inner if isinstance(inner, pl.DataType) else inner()


def _passes(series: pl.Series, rule: Where) -> pl.Series:
    """Which values are among the rule's, or within its bounds; null for null."""
    kind = series.dtype
    if kind in (pl.Categorical, pl.Enum):
        return series.cast(pl.String).is_in(list(rule.operands))
    if not kind.is_numeric() and kind not in (pl.Date, pl.Datetime):
        return series.is_in(pl.Series(rule.operands, dtype=kind))
    numbers = [_number(value) for value in rule.operands]
    low, high = (None if bound is None else _number(bound) for bound in (rule.at_least, rule.at_most))
    if not kind.is_integer() and kind.is_numeric():
        series = series.cast(kind if kind.is_float() else pl.Float64)
    else:
        series = (series if kind.is_integer() else _microseconds(series)).cast(pl.Int128)
        numbers = [int(number) for number in numbers if int(number) == number and abs(number) < _WIDE]
        low, high = (
            (None if low is None else _clamped(math.ceil(low))),
            (None if high is None else _clamped(math.floor(high))),
        )
    if rule.operands:
        return series.is_in(pl.Series(numbers, dtype=series.dtype))
    inside = series.is_not_null()
    if low is not None:
        inside &= (series >= pl.Series([low], dtype=series.dtype)).fill_null(False)
    if high is not None:
        inside &= (series <= pl.Series([high], dtype=series.dtype)).fill_null(False)
    return inside


def _number(value: Value) -> int | float:
    """A number as it is, a time in microseconds since 1970."""
    return value if isinstance(value, (int, float)) else _instant(value)


def _clamped(number: int) -> int:
    return max(-_WIDE, min(_WIDE, number))


def _microseconds(series: pl.Series) -> pl.Series:
    """Microseconds since 1970, UTC."""
    kind = series.dtype
    zone = kind.time_zone if isinstance(kind, pl.Datetime) else None
    return series.cast(pl.Datetime("us", zone)).cast(pl.Int64)


def _instant(value: str | date) -> int:
    """The same of one date, datetime or text in ISO form."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    since = value - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _is_iso(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
