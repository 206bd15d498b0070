"""Where the histories of users come from: the protocol, and the order of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from recsys.events import Event

__all__ = ["HistorySource", "Mark", "Tail", "TailSource", "all_of", "in_time_order"]


@runtime_checkable
class HistorySource(Protocol):
    """Users' events in the callers' own ids and names, readable from any thread.

    A source keeps words, not internal numbers: items, surfaces and actions that today's bundle does not know are kept
    as given, because tomorrow's may know them. Ids are strings or integers and keep their type; ``"7"`` and ``7`` are
    two users.
    """

    def events(self, user_ids: Sequence[Any]) -> list[list[Event] | None]:
        """All events of each user, in one read.

        Args:
            user_ids: any number, repeats allowed.

        Returns:
            One entry a user, in the order of :func:`in_time_order`; None for a user of whom nothing is known.

        Raises:
            InputError: an id that is neither a string nor an integer.
            SourceUnavailable: the source cannot be read. It never answers with a part of what it holds.
                :class:`~recsys.errors.DamagedHistory` where only some of these users are concerned.
        """
        ...

    def append(self, user_id: Any, events: Sequence[Event]) -> None:
        """Add events behind those that are there, all or none; durable when it returns.

        Events equal in item and time count as one with their actions united, as everywhere, so that an append of
        events with times may be repeated without harm. One that raised :class:`~recsys.errors.SourceUnavailable` may
        or may not have been stored: repeat it.

        Raises:
            InputError: an id or event that cannot be meant; or the source is read-only.
            SourceUnavailable: the source cannot be written.
        """
        ...

    def close(self) -> None:
        """Release files and connections; closing twice is no error."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a user's events were read."""

    place: int
    """Of the last event, in order of arrival."""
    state: object
    """What must still be so for the mark to hold; the store's own business."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Events of one user behind a mark."""

    events: list[Event]
    """In order of arrival."""
    mark: Mark | None
    """Of the last event; None for a user of whom nothing is known."""
    continues: bool
    """Whether what was read up to the mark is still as it was; otherwise these are all events."""


@runtime_checkable
class TailSource(HistorySource, Protocol):
    """A source that can read what came since."""

    def tails(self, user_ids: Sequence[Any], marks: Sequence[Mark | None]) -> list[Tail]:
        """Each user's events behind a mark, or all of them without one, in one read.

        Raises:
            InputError, SourceUnavailable: as :meth:`HistorySource.events`.
        """
        ...


def all_of(source: TailSource, user_ids: Sequence[Any]) -> list[list[Event] | None]:
    """What :meth:`HistorySource.events` promises, of a source with tails."""
    tails = source.tails(user_ids, [None] * len(user_ids))
    return [in_time_order(tail.events) if tail.mark is not None else None for tail in tails]


def in_time_order(events: list[Event]) -> list[Event]:
    """Events by (time, arrival), stable.

    An event without a time happens where it arrived: it stays behind the event that arrived before it. Those that
    arrived before any time was known come first.

    Args:
        events: in order of arrival.
    """
    key, keys, sorted_already = -(2**63), [], True
    for event in events:
        time = key if event.timestamp is None else event.timestamp
        sorted_already = sorted_already and time >= key
        key = time
        keys.append(time)
    if sorted_already:
        return events
    return [events[row] for row in sorted(range(len(events)), key=keys.__getitem__)]
