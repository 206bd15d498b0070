"""A store of new events on top of histories that change only with the bundle: the usual deployment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from recsys.bundle import Bundle
from recsys.events import Event
from recsys.retrieval.history_sources.bundle import BundleHistories
from recsys.retrieval.history_sources.source import HistorySource, in_time_order

__all__ = ["LayeredHistories", "over_bundle"]


class LayeredHistories:
    """What a base holds, then what a store has since; appends go to the store.

    Events may be in both, as when a later bundle was made with what the store held by then: equal ones unite. So the
    store need not be emptied when a bundle is exchanged; it may be, of users whose events are all in the base.
    """

    def __init__(self, base: HistorySource, store: HistorySource) -> None:
        self.base, self.store = base, store

    def events(self, user_ids: Sequence[Any]) -> list[list[Event] | None]:
        """See :meth:`HistorySource.events`; None for a user whom neither knows."""
        both = zip(self.base.events(user_ids), self.store.events(user_ids), strict=True)
        return [
            None if earlier is None and later is None else in_time_order([*(earlier or ()), *(later or ())])
            for earlier, later in both
        ]

    def append(self, user_id: Any, events: Sequence[Event]) -> None:
        """See :meth:`HistorySource.append`."""
        self.store.append(user_id, events)

    def close(self) -> None:
        """Close both."""
        self.base.close()
        self.store.close()


def over_bundle(store: HistorySource) -> Callable[[Bundle], HistorySource]:
    """For ``Recommender.load(path, history_source=over_bundle(store))``: the bundle's histories, then the store's.

    Whatever bundle answers is the base, also after an exchange. A bundle without histories leaves the store alone.
    """

    def source(bundle: Bundle) -> HistorySource:
        return store if bundle.histories is None else LayeredHistories(BundleHistories(bundle), store)

    return source
