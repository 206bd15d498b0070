"""The requests of the serving benchmark, and how much work counting says they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.bundle import Bundle
from recsys.events import Event
from recsys.pipelines.bench.serve_ways import ACTIONS, DIM, NUM_ITEMS
from recsys.retrieval.request import Request

__all__ = ["PAGE", "Visit", "Visits", "counted_ratio", "counted_work", "seen_ratio"]

PAGE = 20
"""Items of a page; what is ranked are the candidates."""
NEW_SHARE = 0.2
_MOST_EVENTS = 48
"""Events that a user brings along before another one takes their place: an export makes them part of the bundle."""
_APART = 32
"""Visits between two of one user, at least."""


def counted_work(events: int, candidates: int, dim: int = DIM, new: int | None = None) -> tuple[int, int]:
    """Multiplications of a layer: for a history of so many events, or ``new`` ones behind them, and for candidates."""
    delta = 10 * candidates * dim**2 + 4 * candidates * events * dim
    if new is None:
        return 10 * events * dim**2 + 2 * events**2 * dim, delta
    return 10 * new * dim**2 + 4 * new * events * dim, delta


def counted_ratio(events: int, candidates: int, dim: int = DIM, *, kept: bool = True) -> float:
    """(2E + Δ) / (.2E + .8(20d² + 8nd) + Δ) with E = 10nd² + 2n²d and Δ = 10kd² + 4knd; without ``kept`` over E + Δ.

    Four in five users return, with two new events on average.

    >>> round(counted_ratio(1024, 200), 2), round(counted_ratio(1024, 200, kept=False), 2)
    (4.29, 1.74)
    """
    history, delta = counted_work(events, candidates, dim)
    appended, _ = counted_work(events, candidates, dim, new=2)
    share = NEW_SHARE * history + (1 - NEW_SHARE) * appended if kept else history
    return (2 * history + delta) / (share + delta)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request, and what counting its work needs to know."""

    request: Request
    visible: int
    """Events in the window."""
    num_new: int | None
    """Events since the state that a large store keeps; None where none continues: a new user, or a window that slid."""


def seen_ratio(visits: Sequence[Visit], candidates: int) -> float:
    """:func:`counted_ratio` of the visits as they were: shorter windows, and those that slid."""
    ours = theirs = 0
    for visit in visits:
        history, delta = counted_work(visit.visible, candidates)
        appended = history if visit.num_new is None else counted_work(visit.visible, candidates, new=visit.num_new)[0]
        ours, theirs = ours + appended + delta, theirs + 2 * history + delta
    return theirs / ours


class Visits:
    """Visits without end: every fifth is by somebody new, the others by users who return with one to three new events.

    Users are met at any phase of the sliding of their window, so that windows slide at their natural rate: whenever a
    quarter of one has come. Stored events are those of the bundle, what came since is in the request.

    Args:
        bundle: of :func:`bench_bundle`.
        candidates: of each request.
        num_returning: users of the bundle who return; the others lend their events to new ones.
    """

    def __init__(self, bundle: Bundle, candidates: int, num_returning: int, seed: int = 0) -> None:
        assert bundle.histories is not None
        self._rng = np.random.default_rng(seed)
        self._config, self._candidates = bundle.model.config, candidates
        self._stored = bundle.histories.events
        self.num_returning, self._num_users = num_returning, len(bundle.histories.users)
        self._since: list[list[Event]] = [[] for _ in range(num_returning)]
        self._life = [0] * num_returning
        self._lately: list[int] = []
        self._number = 0

    def first(self) -> list[Visit]:
        """One visit of every user who will return."""
        return [self._visit(user, None) for user in range(self.num_returning)]

    def take(self, count: int) -> list[Visit]:
        """The next visits; a multiple of five holds exactly a fifth of new users."""
        found = []
        for number in range(count):
            if number % 5 == 0:
                place = int(self._rng.integers(5))
            found.append(self._new() if number % 5 == place else self._returning())
        return found

    def _new(self) -> Visit:
        self._number += 1
        user = int(self._rng.integers(self.num_returning, self._num_users))
        request = self._request(user, [], f"new {self._number}")
        return Visit(request, self._visible(user, 0), None)

    def _returning(self) -> Visit:
        user = int(self._rng.integers(self.num_returning))
        while user in self._lately:
            user = int(self._rng.integers(self.num_returning))
        self._lately = [*self._lately, user][-min(_APART, self.num_returning // 2) :]
        if len(self._since[user]) > _MOST_EVENTS:
            self._since[user], self._life[user] = [], self._life[user] + 1
            return self._visit(user, None)
        num_new = int(self._rng.integers(1, 4))
        last = self._since[user][-1].timestamp if self._since[user] else self._last(user)
        assert last is not None
        for _ in range(num_new):
            last += int(self._rng.integers(5, 5000))
            item, action = int(self._rng.integers(NUM_ITEMS)), ACTIONS[int(self._rng.integers(3))]
            self._since[user].append(Event(item_id=item, actions=action, timestamp=last, surface="home"))
        before = self._first(user, len(self._since[user]) - num_new)
        slid = self._first(user, len(self._since[user])) != before
        return self._visit(user, None if slid else num_new)

    def _visit(self, user: int, num_new: int | None) -> Visit:
        since = self._since[user]
        request = self._request(user, since, f"{user} {self._life[user]}")
        return Visit(request, self._visible(user, len(since)), num_new)

    def _request(self, user: int, since: Sequence[Event], key: str) -> Request:
        last = since[-1].timestamp if since else self._last(user)
        assert last is not None
        return Request(
            user_id=user, new_events=tuple(since), cache_key=key, k=PAGE, rank_by="click",
            candidates=self._candidates, at=last + 60, surface="home",
        )  # fmt: skip

    def _last(self, user: int) -> int:
        return int(self._stored.timestamp[self._stored.offsets[user + 1] - 1])

    def _first(self, user: int, num_since: int) -> int:
        stored = int(self._stored.offsets[user + 1] - self._stored.offsets[user])
        return self._config.first_visible(stored + num_since)

    def _visible(self, user: int, num_since: int) -> int:
        stored = int(self._stored.offsets[user + 1] - self._stored.offsets[user])
        return stored + num_since - self._first(user, num_since)
