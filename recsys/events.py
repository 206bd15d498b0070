"""Events, histories and the packed logs they live in.

Suffixes: N = events, U = users, S = slates, R = slate rows.
Actions are two bit masks: bit a of ``yes`` says that action a happened, bit a of ``known`` that the log would have
recorded it. ``yes`` is a subset of ``known``; a bit in neither is *unknown*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_ACTIONS",
    "MOST_TIME",
    "UNKNOWN_ITEM",
    "Event",
    "EventLog",
    "History",
    "Requests",
    "SlateLog",
    "is_integer",
]

UNKNOWN_ITEM = -1
"""Internal id of an item that the catalogue does not hold: its event counts, its item vector is zero."""

MOST_ACTIONS = 31
"""Different actions of a dataset: they are bits of one integer of 32."""

MOST_TIME = 2**62
"""Timestamps are smaller in size, whatever their unit, so that the difference of two fits into 64 bits."""

Ints = NDArray[np.int64]


def is_integer(value: Any) -> bool:
    """Whether a caller's value is an integer; a bool is none.

    >>> is_integer(7), is_integer(True), is_integer(7.0)
    (True, False, False)
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event as a caller states it, in the caller's ids.

    ``actions`` is one name, several joined by ``+``, or a sequence of names; empty = bare exposure. ``unknown`` names
    actions of which the event says nothing; all others that did not happen count as *no*.
    """

    item_id: str | int
    actions: str | Sequence[str] = ()
    timestamp: int | None = None
    surface: str | None = None
    value: float | None = None
    unknown: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class History:
    """One user's events, oldest first, in internal ids. All arrays have length n."""

    item: Ints
    """Internal item ids; :data:`UNKNOWN_ITEM` for an item outside the catalogue."""
    timestamp: Ints
    """Seconds, non-decreasing (an order index where the data has no real clock)."""
    yes: Ints
    known: Ints
    surface: Ints
    """Index into the surface vocabulary; 0 = unknown."""
    time_known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.item)

    def at(self, rows: slice | NDArray[np.bool_]) -> History:
        """Some of the events, in order."""
        return History(
            self.item[rows],
            self.timestamp[rows],
            self.yes[rows],
            self.known[rows],
            self.surface[rows],
            self.time_known[rows],
        )

    def prefix(self, end: int) -> History:
        """The first ``end`` events."""
        return self.at(slice(end))

    def positives(self, positive_mask: int) -> History:
        """The positive events."""
        return self.at((self.yes & positive_mask) != 0)


@dataclass(frozen=True, slots=True)
class EventLog:
    """All events, packed by user: those of user u are rows ``offsets[u]:offsets[u + 1]``, in (time, file) order."""

    offsets: Ints
    item: Ints
    timestamp: Ints
    yes: Ints
    known: Ints
    surface: Ints
    value: NDArray[np.float32]
    """NaN where unknown."""
    time_known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.item)

    def only(self, rows: NDArray[np.bool_]) -> EventLog:
        """A log of some of the events, the users kept."""
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(rows, dtype=np.int64)])
        return EventLog(
            before[self.offsets],
            self.item[rows],
            self.timestamp[rows],
            self.yes[rows],
            self.known[rows],
            self.surface[rows],
            self.value[rows],
            self.time_known[rows],
        )

    def history(self, user: int, end: int | None = None) -> History:
        """The first ``end`` events of one user (all where ``end`` is None), without a copy."""
        low, high = int(self.offsets[user]), int(self.offsets[user + 1])
        at = slice(low, high if end is None else low + end)
        return History(
            self.item[at], self.timestamp[at], self.yes[at], self.known[at], self.surface[at], self.time_known[at]
        )


@dataclass(frozen=True, slots=True)
class SlateLog:
    """All slates, ordered by (user, time, file): slates of user u are ``user_offsets[u]:user_offsets[u + 1]``.

    The rows of slate s are ``offsets[s]:offsets[s + 1]``, in the order shown (shown rank = place in the slate).
    """

    user_offsets: Ints
    offsets: Ints
    user: Ints
    timestamp: Ints
    split: Ints
    """0 = train, 1 = validation, 2 = test, 3 = belongs to none."""
    item: Ints
    yes: Ints
    known: Ints
    surface: Ints
    time: Ints
    value: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, slots=True)
class Requests:
    """Q questions of a split: what comes after the first ``end`` events of ``user``?"""

    user: Ints
    end: Ints
    """Events of the user that are the history."""
    target: Ints
    """Internal item id; -1 where nothing is held out (split ``now``)."""
    timestamp: Ints
    """Time of the request: the target event's, or the largest in the data for ``now``."""
    surface: Ints
    """Surface of the request: the target event's; 0 = unknown."""

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, at: slice | Ints) -> Requests:
        """A part of the requests."""
        return Requests(self.user[at], self.end[at], self.target[at], self.timestamp[at], self.surface[at])
