"""One question to a recommender."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.errors import InputError, shown
from recsys.events import MOST_TIME, Event, is_integer
from recsys.retrieval.limits import collection, weights_of
from recsys.retrieval.reordering import Reorders, check_reorders
from recsys.retrieval.rules.plan import check_rules
from recsys.retrieval.rules.rule import Rule

__all__ = ["Request", "is_cache_key"]

_LONGEST_KEY = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Who asks, for what, among which items. All ids are the caller's."""

    user_id: Any = None
    """A user whose events the source of histories holds, by default the bundle. One it does not know counts as new,
    and a note says so."""
    history: Sequence[Event] | None = None
    """The user's events in any order, instead of stored ones. Empty or None without a user = somebody new."""
    user_features: Mapping[str, Any] | None = None
    """Columns of the users table by name, for a user the bundle does not know, or instead of what it knows of one.
    What is left out is unknown."""
    new_events: Sequence[Event] = ()
    """What happened since: added to the stored or given history."""
    k: int = 10
    """Hits wanted; a page is shorter where fewer items are left."""
    retrievers: Sequence[str] = ("dense",)
    """Who finds the items. Several take turns, first named first; an item belongs to the first that brought it."""
    exclude: Iterable[Any] = ()
    """Items never to return; unknown ids are ignored."""
    allow: Iterable[Any] | None = None
    """Only these may be returned; unknown ids are ignored. None = the whole catalogue."""
    exclude_history: bool = True
    """Leave out the items of all earlier events, whatever their action and however far back."""
    at: int | None = None
    """Time of the request. None = the wall clock where the data has a real clock, else the last event's."""
    surface: str | None = None
    """Where the items will be shown; a name the data never had counts as unknown."""
    rank: bool = True
    """Whether hits carry a probability per action."""
    rank_by: str | Mapping[str, float] | None = None
    """An action, or weights of several: retrieve ``candidates`` items and order them by Σ weight · probability.
    A weight below 0 lowers what the action is likely for: ``{"like": 1.0, "hide": -1.0}``. None keeps the order of
    retrieval."""
    candidates: int = 100
    """Items to retrieve before ordering by ``rank_by``, or by a rule that changes scores; never fewer than k, nor than
    the reranker wants."""
    rules: Sequence[Rule] = ()
    """Business rules, see :mod:`recsys.retrieval.rules`; they act before the page is cut to k items."""
    max_candidates: int | None = None
    """Where caps and floors leave fewer than k items, more are retrieved, twice as many each time, up to this number;
    None = until the catalogue is exhausted."""
    reranker: Reorders | None = None
    """Puts the first candidates in another order before the rules choose the page: a
    :class:`recsys.retrieval.rerank.reranker.Reranker` or a :class:`recsys.retrieval.rerank.chain.RerankChain`."""
    rerank_ms: float | None = None
    """Milliseconds that the reranker may take; past them the page is in the order from before it and a note says so.
    None = as long as it takes."""
    cache_key: str | int | None = None
    """Under which the recommender keeps what it made of the history, so that the next request with this key pays for
    new events only. None = ``user_id`` where one is named, else nothing is kept. No key changes a result."""

    def __post_init__(self) -> None:
        for name in ("k", "candidates", "max_candidates"):
            value = getattr(self, name)
            if value is None and name == "max_candidates":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {shown(value)}")
        for name in ("exclude_history", "rank"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {shown(getattr(self, name))}")
        for name in ("history", "new_events"):
            self._check_events(name, getattr(self, name))
        if self.at is not None and (not is_integer(self.at) or not abs(int(self.at)) < MOST_TIME):
            raise InputError(f"at must be an integer number of seconds, got {shown(self.at)}")
        if self.surface is not None and not isinstance(self.surface, str):
            raise InputError(f"surface must be a name, got {shown(self.surface)}")
        if self.user_features is not None and not isinstance(self.user_features, Mapping):
            raise InputError(f"user_features must be columns by name, got {shown(self.user_features)}")
        weights_of(self.rank_by)
        if self.user_id is not None and self.history is not None:
            raise InputError("give user_id or history, not both; what happened since goes into new_events")
        names = self.retrievers
        if (
            isinstance(names, (str, bytes))
            or not isinstance(names, Sequence)
            or not len(names)
            or not all(isinstance(name, str) for name in names)
        ):
            raise InputError(f"retrievers must be a sequence of names such as ('dense',), got {shown(names)}")
        if self.rank_by is not None and not self.rank:
            raise InputError("rank_by orders by probabilities; it needs rank=True")
        if isinstance(self.rules, Rule) or not isinstance(self.rules, Sequence):
            raise InputError(
                f"rules must be a sequence of rules such as [Cap('category', n=2)], got {shown(self.rules)}"
            )
        check_rules(self.rules, self.k)
        check_reorders(self.reranker, self.rerank_ms)
        if self.cache_key is not None and not is_cache_key(self.cache_key):
            raise InputError(
                f"cache_key must be an integer or a string of at most {_LONGEST_KEY} characters, got "
                f"{str(self.cache_key)[:40]!r}"
            )
        for name in ("exclude", "allow"):  # an iterator would be empty when the request is asked again
            object.__setattr__(self, name, collection(name, getattr(self, name)))
        if self.exclude is None:
            object.__setattr__(self, "exclude", ())

    @staticmethod
    def _check_events(name: str, events: Any) -> None:
        if events is None and name == "history":
            return
        if isinstance(events, (str, bytes)) or not isinstance(events, Sequence):
            raise InputError(f"{name} must be a sequence of events, got {shown(events)}")
        for number, event in enumerate(events):
            if not isinstance(event, Event):
                raise InputError(f"{name}: element {number} must be a recsys.Event, got {shown(event)}")


def is_cache_key(key: Any) -> bool:
    """Whether something can be a key: keys are held beside the states, so that they must be small."""
    if isinstance(key, str):
        return len(key) <= _LONGEST_KEY
    return isinstance(key, int) and key.bit_length() < 128
