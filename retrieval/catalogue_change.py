"""A change of the catalogue as a caller states it, checked against the items table before anything is touched.

Suffixes: J = items of a part, C = changed items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.errors import InputError, shown

__all__ = ["CatalogueChange", "GivenRows", "given_rows"]

Ints = NDArray[np.int64]
GivenRows = tuple[pl.DataFrame, ...]
"""Tables of item_id and some columns: a table states all of its columns for all of its rows."""


@dataclass(frozen=True, slots=True)
class CatalogueChange:
    """What changes, in the numbers of a bundle."""

    new: pl.DataFrame
    """Rows of new items in the columns of the items table, null where nothing was given."""
    codes: Mapping[str, list[Any]]
    """By kind, the codes that were given of new items; None where there are none."""
    changed_C: Ints
    """Numbers of known items with other values."""
    changed: pl.DataFrame
    """Their whole rows as they are now."""
    read_C: NDArray[np.bool_]
    """Whether a column changed that the model or the item graph reads."""
    withdrawn: Ints
    """Numbers of all withdrawn items afterwards, rising."""

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        rows: GivenRows,
        withdraw: Iterable[Any] = (),
        restore: Iterable[Any] = (),
        *,
        read: frozenset[str] = frozenset(),
        vector_columns: Sequence[str] = (),
        lenient: bool = False,
    ) -> CatalogueChange:
        """Check a change.

        Args:
            bundle: whose catalogue changes.
            rows: from :func:`given_rows`.
            withdraw: ids of items that are no longer returned.
            restore: ids of items that are returned again.
            read: columns that content and item graph are made of.
            vector_columns: those of them that rows of new items must hold.
            lenient: leave out columns, and ids to withdraw or restore, that the bundle does not know, as for changes
                that were made to another one.

        Raises:
            InputError: the first thing that is wrong.
        """
        words, table = bundle.vocabulary.items, bundle.items
        kinds = tuple(kind for kind in bundle.model.codes.sizes if kind not in table.columns)
        typed = [_typed(frame, table, kinds, lenient) for frame in rows]
        ids = pl.concat([frame["item_id"] for frame in typed]) if typed else table["item_id"][:0]
        if ids.n_unique() != len(ids):
            twice = next(name for name, count in Counter(ids.to_list()).items() if count > 1)
            raise InputError(f"items: the id {shown(twice)} stands in two rows; give one row per item")
        new, codes = [table[:0]], {kind: list[Any]() for kind in kinds}
        numbers, changed, is_read = [np.zeros(0, dtype=np.int64)], [table[:0]], [np.zeros(0, dtype=np.bool_)]
        for frame in typed:
            number_J = words.index(frame["item_id"])
            fresh = frame.filter(pl.Series(number_J < 0))
            if fresh.height:
                for name in vector_columns:
                    if name not in fresh.columns:
                        raise InputError(
                            f"items: the new item {fresh['item_id'][0]!r} has no column {name}, a vector that the "
                            "model reads; give it, null where it is not known"
                        )
                for kind in kinds:
                    codes[kind] += fresh[kind].to_list() if kind in fresh.columns else [None] * fresh.height
                new.append(pl.concat([table[:0], fresh.drop(kinds, strict=False)], how="diagonal"))
            known_J = np.flatnonzero(number_J >= 0)
            before = table[number_J[known_J]]
            after = before.with_columns(frame.drop(kinds, strict=False)[known_J].get_columns())
            differs = {name: _differs(before[name], after[name]) for name in frame.columns if name in table.columns}
            any_J = np.any(list(differs.values()), axis=0) if len(known_J) else np.zeros(0, dtype=np.bool_)
            reads = [where for name, where in differs.items() if name in read]
            read_J = np.any(reads, axis=0) if reads and len(known_J) else np.zeros(len(known_J), dtype=np.bool_)
            numbers.append(number_J[known_J][any_J])
            changed.append(after.filter(pl.Series(any_J)))
            is_read.append(read_J[any_J])
        changed_C = np.concatenate(numbers)
        order_C = changed_C.argsort()
        return cls(
            new=pl.concat(new),
            codes=codes,
            changed_C=changed_C[order_C],
            changed=pl.concat(changed)[order_C],
            read_C=np.concatenate(is_read)[order_C],
            withdrawn=_withdrawn(bundle, withdraw, restore, ids, lenient),
        )

    @property
    def touches_items(self) -> bool:
        """Whether anything but the list of withdrawn items changes."""
        return bool(self.new.height or len(self.changed_C))


def given_rows(items: Any) -> GivenRows:
    """Rows that a caller gave, as tables.

    Args:
        items: a polars or pandas frame, one mapping, or a sequence of mappings, with ``item_id`` and columns of the
            items table. What a mapping leaves out, or a frame has no column of, stays as it is.

    Raises:
        InputError: something else, or rows without an ``item_id``.
    """
    if items is None:
        return ()
    if isinstance(items, pl.LazyFrame):
        items = items.collect()
    if isinstance(items, Mapping):
        items = [items]
    if isinstance(items, pl.DataFrame):
        frames = [items]
    elif hasattr(items, "columns") and hasattr(items, "to_dict"):
        names = [str(name) for name in items.columns]
        columns = [[_plain(value) for value in items[name].tolist()] for name in items.columns]
        frames = [_frame(dict(zip(names, columns, strict=True)))]
    elif isinstance(items, Sequence) and all(isinstance(row, Mapping) for row in items):
        groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in items:
            if strange := [name for name in row if not isinstance(name, str)]:
                raise InputError(f"items: a column is called {shown(strange[0])}; names of columns are text")
            groups.setdefault(tuple(sorted(row)), []).append(row)
        frames = [
            _frame({name: [_plain(row[name]) for row in rows] for name in names}) for names, rows in groups.items()
        ]
    else:
        raise InputError(f"items is a {type(items).__name__}; give a polars or pandas frame, or a list of mappings")
    for frame in frames:
        if "item_id" not in frame.columns:
            raise InputError(f"items: the column item_id is missing (there are: {', '.join(frame.columns) or 'none'})")
    return tuple(_with_ids(frame) for frame in frames if frame.height)


def _with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows whose ids are integers or text; 7.0 is 7, as in JSON and in a column of pandas with gaps."""
    ids = frame["item_id"]
    if ids.dtype.is_float():
        bad = ids.filter((ids.round() != ids) | (ids.abs() >= 2**53))
        if bad.is_empty():
            return frame.with_columns(ids.cast(pl.Int64))
    elif ids.dtype != pl.Boolean:  # what else cannot be read as an id is said where the type of the table is known
        return frame
    else:
        bad = ids.drop_nulls()
    raise InputError(f"items: item_id {shown(bad.first())} is no id; give integers or text")


def _frame(columns: Mapping[str, list[Any]]) -> pl.DataFrame:
    series = []
    for name, values in columns.items():
        try:
            series.append(pl.Series(name, values, strict=True))
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
            line = " ".join(str(error).split())[:120]
            raise InputError(f"items, column {name}: its values are not of one type ({line})") from error
    return pl.DataFrame(series)


def _plain(value: Any) -> Any:
    """A cell without numpy's types; a missing float of pandas is no value."""
    if isinstance(value, float) and value != value:
        return None
    return value.tolist() if hasattr(value, "tolist") else value


def _typed(frame: pl.DataFrame, table: pl.DataFrame, kinds: Sequence[str], lenient: bool) -> pl.DataFrame:
    """The rows in the types of the items table."""
    unknown = [name for name in frame.columns if name not in table.columns and name not in kinds]
    if unknown and lenient:
        frame = frame.drop(unknown)
    elif unknown:
        there = ", ".join([*table.columns, *kinds])
        raise InputError(f"items: the items table has no column {unknown[0]!r}; its columns are {there}")
    for name in frame.columns:
        if name in kinds:
            continue
        try:
            column = frame[name].cast(table.schema[name], strict=True)
        except pl.exceptions.PolarsError as error:
            line = " ".join(str(error).split())[:120]
            raise InputError(f"items, column {name}: its values are no {table.schema[name]} ({line})") from error
        if _is_count(table.schema[name]) and frame[name].dtype.is_float():  # a cast would cut 7.5 to 7
            cut = frame[name].filter(column.cast(frame[name].dtype) != frame[name])
            if len(cut):
                raise InputError(f"items, column {name}: its values are no {table.schema[name]} ({cut[0]})")
        frame = frame.with_columns(column)
    if frame["item_id"].null_count():
        raise InputError(f"items: row {int(frame['item_id'].is_null().arg_max() or 0) + 1} has no item_id")
    return frame


def _is_count(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or dtype == pl.Boolean


def _differs(before: pl.Series, after: pl.Series) -> NDArray[np.bool_]:
    if before.dtype.is_nested():
        pairs = zip(before.to_list(), after.to_list(), strict=True)
        return np.array([one != other for one, other in pairs], dtype=np.bool_)
    differs: NDArray[np.bool_] = before.ne_missing(after).to_numpy()
    return differs


def _withdrawn(
    bundle: Bundle, withdraw: Iterable[Any], restore: Iterable[Any], given: pl.Series, lenient: bool
) -> Ints:
    found = {}
    for what, ids in (("withdraw", withdraw), ("restore", restore)):
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise InputError(f"{what} must be a collection of item ids, got the single value {shown(ids)}")
        names = list(ids)
        number = bundle.vocabulary.items.index(names)
        if (number < 0).any() and not lenient:
            strange = names[int(np.argmin(number))]
            is_new = isinstance(strange, (str, int)) and strange in set(given.to_list())
            where = "; what is new cannot be withdrawn in the same call" if is_new else ""
            raise InputError(f"{what}: item {shown(strange)} is not in the catalogue of {bundle.path}{where}")
        found[what] = np.unique(number[number >= 0])
    both = np.intersect1d(found["withdraw"], found["restore"])
    if len(both):
        raise InputError(f"item {bundle.vocabulary.items.take(both[:1])[0]!r} stands in withdraw and in restore")
    before = bundle.withdrawn_G
    return np.setdiff1d(np.union1d(before, found["withdraw"]), found["restore"])
