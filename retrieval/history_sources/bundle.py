"""The histories that a bundle was exported with, read-only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import Event, History
from recsys.retrieval.history_sources.event_text import plain_id
from recsys.vocabulary import Vocabulary

__all__ = ["BundleHistories", "in_words", "no_histories"]


def no_histories(bundle: Bundle) -> InputError:
    """What to tell who gives a user id to a bundle that was written without histories."""
    return InputError(
        f"{bundle.path} holds no histories, so a user id says nothing to it; give history=[Event(…)], or "
        "export with --histories"
    )


class BundleHistories:
    """Events of the users that a bundle holds, up to its export."""

    def __init__(self, bundle: Bundle) -> None:
        """Read from a loaded bundle.

        Raises:
            InputError: it holds no histories.
        """
        if bundle.histories is None:
            raise no_histories(bundle)
        self.path = bundle.path
        self.vocabulary: Vocabulary = bundle.vocabulary
        self._stored = bundle.histories

    def histories(self, user_ids: Sequence[Any]) -> list[History | None]:
        """Users' histories in the bundle's internal numbers, without a copy; None for an unknown user.

        Ids may be given as text or in the bundle's own type.
        """
        users_Q = self._stored.users.index(user_ids).tolist()
        return [self._stored.events.history(user) if user >= 0 else None for user in users_Q]

    def events(self, user_ids: Sequence[Any]) -> list[list[Event] | None]:
        """See :meth:`HistorySource.events`. An event whose time was not known comes without one."""
        names = [plain_id(user_id, "user_id") for user_id in user_ids]
        return [None if history is None else in_words(self.vocabulary, history) for history in self.histories(names)]

    def append(self, user_id: Any, events: Sequence[Event]) -> None:
        """Nothing can be added to a bundle.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"the histories of {self.path} are read-only; to keep new events, give "
            "Recommender.load(…, history_source=over_bundle(SqliteHistories(FILE)))"
        )

    def close(self) -> None:
        """See :meth:`HistorySource.close`; the bundle stays open."""


def in_words(words: Vocabulary, history: History) -> list[Event]:
    """A history in internal numbers as its events in the caller's words; an unknown time is left out."""
    known_item = iter(words.items.take(history.item[history.item >= 0].tolist()))
    masks: dict[int, tuple[str, ...]] = {}

    def names(mask: int) -> tuple[str, ...]:
        if mask not in masks:
            masks[mask] = tuple(name for bit, name in enumerate(words.actions) if mask >> bit & 1)
        return masks[mask]

    every = (1 << len(words.actions)) - 1
    columns = (history.item, history.timestamp, history.yes, history.known, history.surface, history.time_known)
    return [
        Event(
            item_id=next(known_item) if item >= 0 else "",
            timestamp=time if time_known else None,
            actions=names(yes),
            unknown=names(every & ~known),
            surface=words.surfaces[surface] if surface else None,
        )
        for item, time, yes, known, surface, time_known in zip(*(c.tolist() for c in columns), strict=True)
    ]
