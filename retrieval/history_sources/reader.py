"""A bundle's reader of histories: what was translated once is not read again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.events import UNKNOWN_ITEM, Event, History
from recsys.retrieval.history_sources.bundle import BundleHistories
from recsys.retrieval.history_sources.event_text import plain_id
from recsys.retrieval.history_sources.reading import (
    LayeredSource,
    StoredHistory,
    continued_history,
    read_histories,
)
from recsys.retrieval.history_sources.source import HistorySource, Mark, TailSource, in_time_order
from recsys.vocabulary import Vocabulary

__all__ = ["HistoryReader"]

_USER = 32
"""Events whose memory a remembered user takes beside their own: 1.2 KB of arrays, marks and keys."""


@dataclass(frozen=True, slots=True)
class _Kept:
    mark: Mark
    stored: StoredHistory


class HistoryReader:
    """Reads histories in one vocabulary's numbers, and remembers those of recent users.

    Of a user read before, a store is asked for the events since; it says whether what was read is still there, and if
    not, everything is read again. So a history is always that of :func:`read_histories`, and a returning user costs
    the new events only. Sources that cannot say what came since are read anew each time.

    Safe to share between threads.
    """

    def __init__(self, source: HistorySource, vocabulary: Vocabulary, *, max_events: int = 1_000_000) -> None:
        """Read a source.

        Args:
            source: where events come from.
            vocabulary: of the bundle that answers.
            max_events: events remembered at most, of the users asked for last; each takes about 41 bytes, and a user
                as much as 32 of them.
        """
        self.source, self.vocabulary, self.max_events = source, vocabulary, max_events
        self._base: BundleHistories | None = None
        self._store: TailSource | None = source if isinstance(source, TailSource) else None
        if isinstance(source, LayeredSource) and isinstance(source.store, TailSource):
            base = source.base
            if isinstance(base, BundleHistories) and base.vocabulary is vocabulary:  # what it holds never changes
                self._base, self._store = base, source.store
        self._kept: OrderedDict[str | int, _Kept] = OrderedDict()
        self._num_events = self._size = 0
        self._lock = threading.Lock()

    @property
    def num_events(self) -> int:
        """Events remembered now."""
        return self._num_events

    def read(self, user_ids: Sequence[Any]) -> list[StoredHistory | None]:
        """See :func:`read_histories`."""
        if self._store is None:
            return read_histories(self.source, user_ids, self.vocabulary)
        users = [plain_id(user_id, "user_id") for user_id in user_ids]
        with self._lock:
            kept = [self._kept.get(user) for user in users]
        tails = self._store.tails(users, [None if known is None else known.mark for known in kept])
        results: list[StoredHistory | None] = [None] * len(users)
        if self._base is not None:
            results = read_histories(self._base, users, self.vocabulary)
        anew: list[int] = []
        for row, (known, tail) in enumerate(zip(kept, tails, strict=True)):
            if tail.mark is None:
                if known is not None:
                    self._dropped(users[row])
                continue
            if not tail.continues or known is None:
                results[row] = self._remembered(users[row], tail.mark, self._whole(results[row], tail.events))
            elif not tail.events:
                results[row] = self._remembered(users[row], tail.mark, known.stored)
            elif _can_continue(known.stored.history, tail.events, self.vocabulary):
                stored = continued_history(known.stored, tail.events, self.vocabulary)
                results[row] = self._remembered(users[row], tail.mark, stored)
            else:
                anew.append(row)
        if anew:
            again = self._store.tails([users[row] for row in anew], [None] * len(anew))
            for row, tail in zip(anew, again, strict=True):
                if tail.mark is not None:
                    results[row] = self._remembered(users[row], tail.mark, self._whole(results[row], tail.events))
        return results

    def _whole(self, base: StoredHistory | None, arrived: list[Event]) -> StoredHistory:
        return continued_history(base, in_time_order(arrived), self.vocabulary)

    def _remembered(self, user: str | int, mark: Mark, stored: StoredHistory) -> StoredHistory:
        with self._lock:
            self._count(self._kept.pop(user, None), -1)
            if len(stored.history) + _USER <= self.max_events:
                self._kept[user] = kept = _Kept(mark, stored)
                self._count(kept, 1)
            while self._size > self.max_events:
                self._count(self._kept.popitem(last=False)[1], -1)
        return stored

    def _dropped(self, user: str | int) -> None:
        """Forget a user whom the store has forgotten."""
        with self._lock:
            self._count(self._kept.pop(user, None), -1)

    def _count(self, kept: _Kept | None, sign: int) -> None:
        if kept is not None:
            self._num_events += sign * len(kept.stored.history)
            self._size += sign * (len(kept.stored.history) + _USER)


def _can_continue(history: History, events: list[Event], vocabulary: Vocabulary) -> bool:
    """Whether events put behind a history give what all of them read at once would.

    Not where an event has no time, since such events take theirs from their neighbours; nor where an item outside the
    catalogue comes at the time of an earlier one, which may be the same: a history does not tell them apart.
    """
    if not history.time_known.all() or any(event.timestamp is None for event in events):
        return False
    strange_N = history.item == UNKNOWN_ITEM
    if not strange_N.any():
        return True
    unknown = vocabulary.items.index([event.item_id for event in events]) < 0
    times = np.array([event.timestamp for event in events], dtype=np.int64)[unknown]
    return not np.isin(times, history.timestamp[strange_N]).any()
