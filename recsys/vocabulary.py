"""Callers' ids and names, and the internal numbers that stand for them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.datatypes import IntegerType

from recsys.errors import InputError, shown
from recsys.events import MOST_TIME, UNKNOWN_ITEM, Event, History, is_integer

__all__ = ["EXPOSURE_NAMES", "IdMap", "Vocabulary", "empty_history", "is_id_type"]

EXPOSURE_NAMES = frozenset({"", "none", "exposure", "impression", "shown"})
"""Words that a log uses for "shown, and nothing happened"; they never name an action."""

_CHUNK = 1 << 16
"""Ids that are Python objects at one time."""
_FEW = 4
"""Ids that are looked up one by one, at 3 microseconds each, where a search for many starts at 15."""

Ints = NDArray[np.int64]


def is_id_type(dtype: pl.DataType) -> bool:
    """Whether a column of this type may hold callers' ids."""
    return dtype.is_integer() or dtype == pl.String


class IdMap:
    """Callers' ids in internal order, searchable.

    Ids are compared in their own type; an integer given as text, or text that spells an integer, finds its equal too.
    Kept as one sorted column of 64-bit keys, the ids themselves or their hashes, not as a dictionary: ten million
    string ids take 160 megabytes more, not gigabytes. numpy searches it in the caller's thread; polars would hand each
    step of the search to its pool, and a busy machine makes every one of them wait.
    """

    def __init__(self, ids: pl.Series) -> None:
        if not is_id_type(ids.dtype):
            raise ValueError(f"ids must be integers or strings, got {ids.dtype}")
        self.ids = ids.rechunk()
        self._range: tuple[int, int] | None = None
        if isinstance(ids.dtype, IntegerType):
            self._range = pl.select(low=ids.dtype.min(), high=ids.dtype.max()).row(0)
        # numpy has no text that it can search, no integers of 128 bits and none that are missing.
        self._is_hashed = self._range is None or self._range[1] >= 2**64 or bool(ids.null_count())
        key_N = self._keys(self.ids)
        self._order_N: Ints = np.argsort(key_N, kind="stable")
        self._key_N = key_N[self._order_N]

    def __reduce__(self) -> tuple[type[IdMap], tuple[pl.Series]]:
        return IdMap, (self.ids,)  # Python hashes text otherwise in every process

    def check_unique(self) -> None:
        """ValueError where an id is missing or stands for two things."""
        if self.ids.null_count() or self.ids.n_unique() < len(self.ids):
            raise ValueError("ids must be there and differ")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dtype(self) -> pl.DataType:
        """Type of the callers' ids."""
        return self.ids.dtype

    def index(self, values: Iterable[Any] | pl.Series) -> Ints:
        """Internal ids of callers' ids; -1 for one that is not known."""
        if isinstance(values, pl.Series) and values.dtype == self.dtype:
            if not self._is_hashed and len(self.ids) and not values.null_count():
                return self._rows(values.to_numpy())
            parts = [self._index(values[low : low + _CHUNK].to_list()) for low in range(0, len(values), _CHUNK)]
            return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        return self._index([self.own(value) for value in values])

    def own(self, value: Any) -> Any:
        """One id in the ids' own type, known or not; None for a value that is no such id."""
        if isinstance(value, bool):  # an int to Python, and no id to anybody
            return None
        if self._range is None:
            return id_text(value)
        number = _as_integer(value)
        return number if number is not None and self._range[0] <= number <= self._range[1] else None

    def _keys(self, ids: pl.Series) -> NDArray[Any]:
        """What ids are sorted and looked for by."""
        if not self._is_hashed:
            return ids.to_numpy()
        parts = (ids[low : low + _CHUNK].to_list() for low in range(0, len(ids), _CHUNK))
        return np.fromiter((hash(value) for part in parts for value in part), dtype=np.int64, count=len(ids))

    def _index(self, wanted: Sequence[Any]) -> Ints:
        """Internal ids of ids in the ids' own type; -1 for None, too."""
        if len(wanted) <= _FEW or not len(self.ids):
            return np.array([self._row(value) for value in wanted], dtype=np.int64)
        if not self._is_hashed:
            known_Q = np.array([value is not None for value in wanted], dtype=np.bool_)
            return np.where(known_Q, self._rows(np.array([value or 0 for value in wanted], self._key_N.dtype)), -1)
        row_Q = self._rows(np.fromiter(map(hash, wanted), dtype=np.int64, count=len(wanted)))
        held = self.ids[row_Q.clip(0)].to_list()
        for at, (value, other) in enumerate(zip(wanted, held, strict=True)):
            if row_Q[at] >= 0 and (value is None or value != other):  # no id, or another one of the same hash
                row_Q[at] = self._row(value)
        return row_Q

    def _row(self, value: Any) -> int:
        if value is None:
            return -1
        key = self._key_N.dtype.type(hash(value) if self._is_hashed else value)
        place = bisect_left(self._key_N, key)
        while place < len(self._key_N) and self._key_N[place] == key:
            row = int(self._order_N[place])
            if self.ids[row] == value:
                return row
            place += 1
        return -1

    def _rows(self, key_Q: NDArray[Any]) -> Ints:
        """Internal ids of the first of every key; -1 for one that is not there."""
        place_Q = self._key_N.searchsorted(key_Q)
        inside_Q = np.minimum(place_Q, len(self._key_N) - 1)
        return np.where(self._key_N[inside_Q] == key_Q, self._order_N[inside_Q], -1)

    def grown(self, new_ids: pl.Series) -> IdMap:
        """The map with more ids, which get the next numbers.

        Args:
            new_ids: of this map's type, none known, none twice.
        """
        other = object.__new__(IdMap)
        other.ids = pl.concat([self.ids, new_ids.rename(self.ids.name)], rechunk=True)
        other._is_hashed, other._range = self._is_hashed, self._range
        key_M = self._keys(new_ids)
        order_M = np.argsort(key_M, kind="stable")
        place_M = self._key_N.searchsorted(key_M[order_M])
        other._order_N = np.insert(self._order_N, place_M, order_M + len(self.ids))
        other._key_N = np.insert(self._key_N, place_M, key_M[order_M])
        return other

    def take(self, index: Iterable[int]) -> list[Any]:
        """Callers' ids of internal ids."""
        taken: list[Any] = self.ids[pl.Series(np.asarray(list(index), dtype=np.int64))].to_list()
        return taken


def id_text(value: Any) -> str | None:
    """An id as text; None for what no id can be: nothing, bytes, or text that no file can hold."""
    if value is None or isinstance(value, (bytes, bytearray, memoryview)):
        return None
    try:
        text = str(value)
        text.encode("utf-8")
    except (ValueError, RecursionError):  # lone surrogates, or an integer too long to be written out
        return None
    return text


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
        if not isinstance(names, (str, Sequence)) or isinstance(names, (bytes, bytearray)):
            raise InputError(f"{what} must be a name, several joined by '+', or a list of names, got {shown(names)}")
        for given in [names] if isinstance(names, str) else names:
            if not isinstance(given, str):
                raise InputError(f"{what}: {shown(given)} is no name of an action")
            for name in given.split("+"):
                name = name.strip()
                if name in self.actions:
                    mask |= 1 << self.actions.index(name)
                elif name.lower() not in EXPOSURE_NAMES:
                    raise InputError(
                        f"{what}: {shown(name)} is no action of this data; its actions are {', '.join(self.actions)}"
                    )
        return mask

    def surface_index(self, name: str | None) -> int:
        """Number of a surface; 0 for one that the data never had."""
        return self.surfaces.index(name) if isinstance(name, str) and name in self.surfaces else 0

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
        names += [id_text(event.item_id) if item < 0 else int(item) for event, item in zip(events, item_N, strict=True)]
        return _joined(past, _united(_joined(earlier, given), names))

    def _row(self, number: int, event: Event) -> tuple[int, int, int]:
        where = f"event {number} (item {shown(event.item_id)})"
        if event.timestamp is not None and not is_integer(event.timestamp):
            raise InputError(f"{where}: timestamp must be an integer, got {shown(event.timestamp)}")
        if event.timestamp is not None and not abs(int(event.timestamp)) < MOST_TIME:
            raise InputError(f"{where}: timestamp {shown(event.timestamp)} is beyond 64 bits; give seconds since 1970")
        if event.surface is not None and not isinstance(event.surface, str):
            raise InputError(f"{where}: surface must be a name, got {shown(event.surface)}")
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
