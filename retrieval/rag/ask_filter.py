"""A condition on the items that a question implies, and the columns it may be about.

Suffixes: I = items.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

import polars as pl

from recsys.retrieval.rag.sql.column_values import ColumnValues, TextColumn
from recsys.retrieval.rag.words import words

__all__ = ["Filter", "FilterColumns", "NumberColumn", "words_pattern"]

Bound = int | float | date
_SPECIAL = frozenset("\\.+*?()|[]^$#&-~/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Items with one of some values in a column, or with a number or date within bounds."""

    column: str
    values: tuple[str | bool, ...] = ()
    """As the column spells them; any one suffices."""
    at_least: Bound | None = None
    at_most: Bound | None = None
    """Instead of values; both included."""
    negate: bool = False
    """The other items; those without a value among them."""
    within: bool = False
    """``values`` are words that a longer text holds, such as a title, whatever their case and with a plural's end."""
    together: tuple[Filter, ...] = ()
    """What an item has to pass as well: an exclusion, as "no red trains", leaves out only items that do."""
    either: tuple[Filter, ...] = ()
    """Of a wish: items that pass one of these are as good, as by "a green train or a blue doll"."""
    source: Literal["words", "model", "earlier"] = "words"
    """Who found it: rules, a language model, or an earlier question of the conversation."""
    words: str = ""
    """Of the question, that it comes from."""
    score: float = 1.0
    """How sure it is, up to 1; the least sure go first where nothing fits them all."""

    def parts(self) -> tuple[Filter, ...]:
        """Every single condition that it is made of."""
        alone = replace(self, together=(), either=())
        return (alone, *(part for one in (*self.together, *self.either) for part in one.parts()))

    def columns(self) -> frozenset[str]:
        """All that it speaks of."""
        return frozenset(part.column for part in self.parts())

    def wishes(self) -> tuple[Filter, ...]:
        """The filters of which any one suffices, itself alone where there is no choice."""
        return (replace(self, either=()), *self.either)

    def __str__(self) -> str:
        if self.either:
            return " or ".join(f"({one})" if one.together else str(one) for one in self.wishes())
        if self.together:
            alone = replace(self, negate=False, together=())
            parts = (*self.together, alone) if self.negate else (alone, *self.together)
            whole = " and ".join(str(one) for one in parts)
            return f"not ({whole})" if self.negate else whole
        name = self.column.replace("_", " ")
        if self.within:
            spelled = " or ".join(f"“{value}”" for value in self.values)
            return f"{name} {'without' if self.negate else 'with'} {spelled}"
        if self.values:
            listed = " or ".join("yes" if value is True else "no" if value is False else value for value in self.values)
            return f"{name} {'is not' if self.negate else 'is'} {listed}"
        low, high = (None if bound is None else str(bound) for bound in (self.at_least, self.at_most))
        if low == high:
            return f"{name} {'is not' if self.negate else 'is'} {low}"
        name += " not" if self.negate else ""
        if low is not None and high is not None:
            return f"{name} from {low} to {high}"
        return f"{name} at least {low}" if low is not None else f"{name} at most {high}"


@dataclass(frozen=True, slots=True)
class NumberColumn:
    """A column of numbers or dates."""

    name: str
    low: float
    high: float
    """Smallest and largest value; of dates, the years."""
    is_date: bool
    whole: bool
    """All its values are whole numbers."""
    named_like_id: bool


class FilterColumns:
    """The columns of an item table that filters may name, and how filters apply to them."""

    def __init__(self, items: pl.DataFrame, values: ColumnValues) -> None:
        """Look at a table.

        Args:
            items: item_id and any columns.
            values: of the same table.
        """
        self.items, self.values = items, values
        self.texts: dict[str, TextColumn] = dict(values.columns)
        self.numbers: dict[str, NumberColumn] = {}
        self.flags: list[str] = []
        for name, kind in items.schema.items():
            if name == "item_id":
                continue
            if kind == pl.Boolean:
                self.flags.append(name)
            elif (kind.is_numeric() and kind != pl.Int128) or kind in (pl.Date, pl.Datetime):
                column = _number_column(items[name])
                if column is not None:
                    self.numbers[name] = column

    def mask(self, filters: Sequence[Filter]) -> pl.Series:
        """[I] bool: items that pass all filters."""
        if not filters:
            return pl.Series([True], dtype=pl.Boolean).new_from_index(0, len(self.items))
        whole = pl.all_horizontal([self._expression(one) for one in filters])
        return self.items.select(passes=whole)["passes"]

    def sql(self, filters: Sequence[Filter]) -> str:
        """The same as a condition of SQL; ``true`` for none."""
        return " AND ".join(self._condition(one) for one in filters) or "true"

    def _expression(self, one: Filter) -> pl.Expr:
        if one.either:
            return pl.any_horizontal([self._expression(wish) for wish in one.wishes()])
        column = pl.col(one.column)
        if one.values:
            text = self.texts.get(one.column)
            if one.within:
                cells = column.cast(pl.String)
                passes = pl.any_horizontal([cells.str.contains(words_pattern(str(value))) for value in one.values])
            elif text is None:
                passes = column.is_in(list(one.values))
            elif text.listed:
                found = [column.list.contains(pl.lit(value)) for value in one.values]
                passes = pl.any_horizontal(found)
            elif text.separators:
                cells = column.cast(pl.String)
                passes = pl.any_horizontal([cells.str.contains(_pattern(text, str(value))) for value in one.values])
            else:
                passes = column.cast(pl.String).is_in([str(value) for value in one.values])
            passes = passes.fill_null(False)
        else:
            passes = pl.lit(True)
            if one.at_least is not None:
                passes = passes & (column >= one.at_least)
            if one.at_most is not None:
                passes = passes & (_day(column, one.at_most) <= one.at_most)
            if self.items.schema[one.column].is_float():
                passes = passes & column.is_not_nan()
            passes = passes.fill_null(False)
        passes = pl.all_horizontal([passes, *(self._expression(other) for other in one.together)])
        return ~passes if one.negate else passes

    def _condition(self, one: Filter) -> str:
        if one.either:
            return f"({' OR '.join(self._condition(wish) for wish in one.wishes())})"
        name = '"' + one.column.replace('"', '""') + '"'
        if one.values:
            text = self.texts.get(one.column)
            if one.within:
                parts = [f"regexp_matches({name}, {_quoted(words_pattern(str(value)))})" for value in one.values]
            elif text is None:
                parts = [f"{name} = {str(value).lower()}" for value in one.values]
            elif text.listed:
                parts = [f"list_contains({name}, {_quoted(str(value))})" for value in one.values]
            elif text.separators:
                parts = [f"regexp_matches({name}, {_quoted(_pattern(text, str(value)))})" for value in one.values]
            else:
                parts = [f"{name} = {_quoted(str(value))}" for value in one.values]
            condition = " OR ".join(parts)
        else:
            low, high = one.at_least, one.at_most
            parts = [] if low is None else [f"{name} >= {_literal(low)}"]
            if high is not None:
                parts.append(
                    f"CAST({name} AS DATE) <= {_literal(high)}" if isinstance(high, date) else f"{name} <= {high}"
                )
            if self.items.schema[one.column].is_float():
                parts.append(f"NOT isnan({name})")
            condition = " AND ".join(parts)
        if one.together:
            condition = " AND ".join([f"({condition})", *(self._condition(other) for other in one.together)])
        return f"NOT coalesce({condition}, false)" if one.negate else f"({condition})"


def words_pattern(value: str) -> str:
    """Words one after the other in a text, for the regular expressions of polars and DuckDB alike.

    >>> words_pattern("Red dragons")
    '(?i)(^|[^\\\\pL\\\\pN])red[^\\\\pL\\\\pN]+dragon(s|es)?([^\\\\pL\\\\pN]|$)'
    """
    spelled = re.findall(r"[^\W_]+", value.lower())
    last = "".join(words(spelled[-1])) if spelled else ""
    ending = f"{last[:-1]}(ys?|ies)" if last.endswith("y") else f"{last}(s|es)?"
    between = r"[^\pL\pN]"
    return rf"(?i)(^|{between})" + f"{between}+".join([*spelled[:-1], ending]) + rf"({between}|$)"


def _number_column(series: pl.Series) -> NumberColumn | None:
    is_date = series.dtype in (pl.Date, pl.Datetime)
    numbers = (series.dt.year() if is_date else series).drop_nulls().cast(pl.Float64)
    numbers = numbers.filter(numbers.is_finite())
    if not len(numbers):
        return None
    low, high = float(numbers.min()), float(numbers.max())  # type: ignore[arg-type]
    whole = bool((numbers == numbers.round()).all())
    words = series.name.lower().replace("-", "_").split("_")
    like_id = not is_date and (bool({"id", "isbn", "isbn13", "ean", "upc", "code"} & set(words)))
    return NumberColumn(series.name, low, high, is_date, whole, like_id)


def _pattern(column: TextColumn, value: str) -> str:
    """A value between separators, for the regular expressions of polars and DuckDB alike."""
    between = "|".join(_escaped(separator.strip()) for separator in column.separators)
    return rf"(^|{between})\s*{_escaped(value)}\s*($|{between})"


def _escaped(text: str) -> str:
    """Every special character taken as it stands; a brace by its number, which queries may hold.

    >>> _escaped("C++ {x}")
    'C\\\\+\\\\+ \\\\x7bx\\\\x7d'
    """
    spelled = {"{": "\\x7b", "}": "\\x7d"}
    return "".join(spelled.get(c) or (f"\\{c}" if c in _SPECIAL and c != "/" else c) for c in text)


def _day(column: pl.Expr, bound: Bound) -> pl.Expr:
    return column.cast(pl.Date) if isinstance(bound, date) else column


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _literal(bound: Bound) -> str:
    return f"DATE '{bound.isoformat()}'" if isinstance(bound, date) else repr(bound)
