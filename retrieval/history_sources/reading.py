"""Histories in a bundle's internal numbers, from any source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from recsys.events import Event, History
from recsys.retrieval.history_sources.bundle import BundleHistories
from recsys.retrieval.history_sources.source import HistorySource
from recsys.vocabulary import EXPOSURE_NAMES, Vocabulary

__all__ = ["LayeredSource", "StoredHistory", "continued_history", "read_histories"]


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """What a source says of one user, as one bundle understands it."""

    history: History
    num_strange_actions: int = 0
    """Events that name actions which the bundle does not know; they stay events, without those actions."""


@runtime_checkable
class LayeredSource(Protocol):
    """A source that continues another."""

    base: HistorySource
    store: HistorySource


def read_histories(
    source: HistorySource, user_ids: Sequence[Any], vocabulary: Vocabulary
) -> list[StoredHistory | None]:
    """The users' histories in the numbers of a vocabulary; None for a user whom the source does not know.

    A bundle's own histories are taken as they are, not through words.

    Raises:
        InputError: an id that is neither a string nor an integer.
        SourceUnavailable: the source cannot be read.
    """
    if isinstance(source, BundleHistories) and source.vocabulary is vocabulary:
        return [None if history is None else StoredHistory(history) for history in source.histories(user_ids)]
    if isinstance(source, LayeredSource):
        earlier = read_histories(source.base, user_ids, vocabulary)
        return [
            base if later is None else continued_history(base, later, vocabulary)
            for base, later in zip(earlier, source.store.events(user_ids), strict=True)
        ]
    return [
        None if events is None else continued_history(None, events, vocabulary) for events in source.events(user_ids)
    ]


def continued_history(earlier: StoredHistory | None, events: list[Event], vocabulary: Vocabulary) -> StoredHistory:
    """Events behind those of an earlier history, actions that the vocabulary does not hold left out."""
    understood, num_strange = _understood(events, vocabulary)
    history = vocabulary.history(understood, after=None if earlier is None else earlier.history)
    return StoredHistory(history, num_strange + (0 if earlier is None else earlier.num_strange_actions))


def _understood(events: list[Event], vocabulary: Vocabulary) -> tuple[list[Event], int]:
    """The events without actions that the vocabulary does not hold, and how many events had such."""
    known = {(): True}  # few different combinations of names, many events

    def is_known(names: Any) -> bool:
        if names not in known:
            known[names] = not _strange(names, vocabulary)
        return known[names]

    strange = [row for row, e in enumerate(events) if not (is_known(e.actions) and is_known(e.unknown))]
    if not strange:
        return events, 0
    understood = list(events)
    for row in strange:
        event = events[row]
        understood[row] = replace(
            event,
            actions=_known_names(event.actions, vocabulary),
            unknown=_known_names(event.unknown, vocabulary),
        )
    return understood, len(strange)


def _parts(names: str | Sequence[str]) -> list[str]:
    given = [names] if isinstance(names, str) else names
    return [part.strip() for name in given for part in name.split("+")]


def _strange(names: str | Sequence[str], vocabulary: Vocabulary) -> bool:
    return any(name not in vocabulary.actions and name.lower() not in EXPOSURE_NAMES for name in _parts(names))


def _known_names(names: str | Sequence[str], vocabulary: Vocabulary) -> tuple[str, ...]:
    return tuple(name for name in _parts(names) if name in vocabulary.actions)
