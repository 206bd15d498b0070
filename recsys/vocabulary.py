"""Callers' ids and names, and the internal numbers that stand for them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.events import UNKNOWN_ITEM, Event, History

__all__ = ["EXPOSURE_NAMES", "IdMap", "Vocabulary", "empty_history"]

EXPOSURE_NAMES = frozenset({"", "none", "exposure", "impression", "shown"})
"""Words that a log uses for "shown, and nothing happened"; they never name an action."""

_FEW = 16
"""Ids that are looked up one by one: 2 microseconds each among 10,000, where a search of a column starts at 180."""

Ints = NDArray[np.int64]


class IdMap:
    """Callers' ids in internal order, searchable.

    Ids are compared in their own type; an integer given as text, or text that spells an integer, finds its equal too.
    Kept as one sorted column, not as a dictionary: ten million string ids take megabytes, not gigabytes.
    """

    def __init__(self, ids: pl.Series) -> None:
        if not (ids.dtype.is_integer() or ids.dtype == pl.String):
            raise ValueError(f"ids must be integers or strings, got {ids.dtype}")
        self.ids = ids
        self._order_N = ids.arg_sort().to_numpy().astype(np.int64)
        self._sorted = ids.gather(self._order_N)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dtype(self) -> pl.DataType:
        """Type of the callers' ids."""
        return self.ids.dtype

    def index(self, values: Iterable[Any] | pl.Series) -> Ints:
        """Internal ids of callers' ids; -1 for one that is not known."""
        wanted = self._in_own_type(values)
        if len(wanted) == 0 or len(self.ids) == 0:
            return np.full(len(wanted), -1, dtype=np.int64)
        if len(wanted) <= _FEW:
            return np.array([self._place(value) for value in wanted.to_list()], dtype=np.int64)
        null_Q = wanted.is_null().to_numpy()
        wanted = wanted.fill_null(self._sorted[0])
        place_Q = self._sorted.search_sorted(wanted).to_numpy().astype(np.int64)
        inside_Q = np.minimum(place_Q, len(self.ids) - 1)
        same_Q = (self._sorted.gather(inside_Q) == wanted).to_numpy() & (place_Q < len(self.ids)) & ~null_Q
        return np.where(same_Q, self._order_N[inside_Q], -1)

    def own(self, value: Any) -> Any:
        """One id in the ids' own type, known or not; None for a value that is no such id."""
        return self._in_own_type([value])[0]

    def _place(self, value: Any) -> int:
        if value is None:
            return -1
        place = bisect_left(self._sorted, value)
        return int(self._order_N[place]) if place < len(self.ids) and self._sorted[place] == value else -1

    def _in_own_type(self, values: Iterable[Any] | pl.Series) -> pl.Series:
        if isinstance(values, pl.Series) and values.dtype == self.dtype:
            return values
        # A bool is an int to Python, and no id to anybody.
        plain = [None if isinstance(value, bool) else value for value in values]
        if self.dtype == pl.String:
            texts = [None if value is None else str(value) for value in plain]
            try:
                return pl.Series(texts, dtype=pl.String)
            except UnicodeEncodeError:  # half of a surrogate pair is text to Python, and no id of a table
                return pl.Series(
                    [text if text is None or _is_unicode(text) else None for text in texts], dtype=pl.String
                )
        numbers = [_as_integer(value) for value in plain]
        return pl.Series(numbers, dtype=pl.Int128).cast(self.dtype, strict=False)

    def grown(self, new_ids: pl.Series) -> IdMap:
        """The map with more ids, which get the next numbers.

        Args:
            new_ids: of this map's type, none known, none twice.
        """
        other = object.__new__(IdMap)
        other.ids = pl.concat([self.ids, new_ids.rename(self.ids.name)], rechunk=True)
        order_M = new_ids.arg_sort().to_numpy().astype(np.int64)
        place_M = self._sorted.search_sorted(new_ids.gather(order_M)).to_numpy().astype(np.int64)
        other._order_N = np.insert(self._order_N, place_M, order_M + len(self.ids))
        other._sorted = other.ids.gather(other._order_N)
        return other

    def take(self, index: Iterable[int]) -> list[Any]:
        """Callers' ids of internal ids."""
        taken: list[Any] = self.ids[pl.Series(np.asarray(list(index), dtype=np.int64))].to_list()
        return taken


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _as_integer(value: Any) -> int | None:
    if isinstance(value, (int, np.integer)):
        number = int(value)
    elif isinstance(value, str):
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 38 and str(int(value)) == value):
            return None
        number = int(value)
    else:
        return None
    return number if abs(number) < 2**126 else None


def empty_history() -> History:
    """The history of somebody who has done nothing yet."""
    zero = np.zeros(0, dtype=np.int64)
    return History(zero, zero, zero, zero, zero, np.zeros(0, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a model's numbers mean to the people who call it."""

    items: IdMap
    actions: tuple[str, ...]
    """Bit order of the action masks."""
    surfaces: tuple[str, ...]
    """Place 0 is the unknown surface."""
    clock: str
    """``real``, or ``order`` where timestamps only count."""
    max_timestamp: int
    """Largest timestamp of the data the model was made from."""

    def action_mask(self, names: str | Sequence[str], what: str = "actions") -> int:
        """Bit mask of one name, several joined by ``+``, or a sequence of names.

        Raises:
            InputError: a name that the data never had.
        """
        mask = 0
        for given in [names] if isinstance(names, str) else names:
            for name in str(given).split("+"):
                name = name.strip()
                if name in self.actions:
                    mask |= 1 << self.actions.index(name)
                elif name.lower() not in EXPOSURE_NAMES:
                    raise InputError(
                        f"{what}: {name!r} is no action of this data; its actions are {', '.join(self.actions)}"
                    )
        return mask

    def surface_index(self, name: str | None) -> int:
        """Number of a surface; 0 for one that the data never had."""
        return self.surfaces.index(name) if name is not None and name in self.surfaces else 0

    def history(self, events: Sequence[Event], after: History | None = None) -> History:
        """Events in the callers' words as a history, oldest first, optionally behind an earlier one.

        Events are ordered by timestamp, equal ones as given. An event without a timestamp happens where it stands in
        the sequence: it takes the time of the one before it and counts as an event whose time is not known. Events
        equal in item and timestamp are one, actions united, at the place of the first. An item that the catalogue
        does not hold stays an event of :data:`~recsys.events.UNKNOWN_ITEM`.

        Raises:
            InputError: an event that names an unknown action, or whose timestamp is no integer.
        """
        earlier = empty_history() if after is None else after
        if not events:
            return earlier
        rows = [self._row(number, event) for number, event in enumerate(events)]
        item_N = self.items.index([event.item_id for event in events])
        time_N = self._times([event.timestamp for event in events], earlier)
        given = History(
            item_N,
            time_N,
            np.array([row[0] for row in rows], dtype=np.int64),
            np.array([row[1] for row in rows], dtype=np.int64),
            np.array([row[2] for row in rows], dtype=np.int64),
            np.array([event.timestamp is not None for event in events], dtype=np.bool_),
        )
        # Stored events before all of the given ones stay as they are, however many they are.
        first = int(np.searchsorted(earlier.timestamp, time_N.min(), side="left"))
        past, earlier = earlier.prefix(first), earlier.at(slice(first, None))
        # The caller's id tells apart items that the catalogue does not hold; stored ones have lost theirs.
        names: list[Any] = [("stored", row) if item < 0 else int(item) for row, item in enumerate(earlier.item)]
        names += [str(event.item_id) if item < 0 else int(item) for event, item in zip(events, item_N, strict=True)]
        return _joined(past, _united(_joined(earlier, given), names))

    def _row(self, number: int, event: Event) -> tuple[int, int, int]:
        where = f"event {number} (item {event.item_id!r})"
        if event.timestamp is not None and (
            isinstance(event.timestamp, bool) or not isinstance(event.timestamp, (int, np.integer))
        ):
            raise InputError(f"{where}: timestamp must be an integer, got {event.timestamp!r}")
        yes = self.action_mask(event.actions, f"{where}: actions")
        unknown = self.action_mask(event.unknown, f"{where}: unknown")
        every = (1 << len(self.actions)) - 1
        return yes, (every & ~unknown) | yes, self.surface_index(event.surface)

    def _times(self, given: Sequence[int | None], earlier: History) -> Ints:
        """Fill gaps: by the event before, else by the first known one, else by the last of the data.

        Where timestamps only count, each event without one takes the next number.
        """
        step = 0 if self.clock == "real" else 1
        known = [int(time) for time in given if time is not None]
        last = int(earlier.timestamp[-1]) if len(earlier) else None
        if last is None:
            last = known[0] - step if known else (self.max_timestamp if step == 0 else -1)
        times = []
        for time in given:
            last = last + step if time is None else int(time)
            times.append(last)
        return np.array(times, dtype=np.int64)


def _joined(left: History, right: History) -> History:
    return History(
        np.concatenate([left.item, right.item]),
        np.concatenate([left.timestamp, right.timestamp]),
        np.concatenate([left.yes, right.yes]),
        np.concatenate([left.known, right.known]),
        np.concatenate([left.surface, right.surface]),
        np.concatenate([left.time_known, right.time_known]),
    )


def _united(history: History, names: Sequence[Any]) -> History:
    """Order by time, stable, and make one event of those equal in name and known timestamp."""
    keep: dict[Any, int] = {}
    yes, known, surface = history.yes.copy(), history.known.copy(), history.surface.copy()
    for row in np.argsort(history.timestamp, kind="stable").tolist():
        at = (names[row], int(history.timestamp[row])) if history.time_known[row] else ("no time", row)
        first = keep.setdefault(at, row)
        if first != row:
            yes[first] |= yes[row]
            known[first] |= known[row]
            surface[first] = surface[first] or surface[row]
    rows = np.fromiter(keep.values(), dtype=np.int64, count=len(keep))
    return History(
        history.item[rows],
        history.timestamp[rows],
        yes[rows],
        known[rows],
        surface[rows],
        history.time_known[rows],
    )


assert UNKNOWN_ITEM == -1  # what IdMap.index returns for an id it does not hold
