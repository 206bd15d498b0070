"""How large a request may be: what is beyond is refused before anything of that size is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

from recsys.errors import InputError, shown

if TYPE_CHECKING:
    from recsys.retrieval.request import Request

__all__ = ["MOST_OF_ANYTHING", "Limits", "collection", "taken", "weights_of"]

MOST_OF_ANYTHING = 10_000_000
"""Elements of an iterator that are looked at before any limit is known, so that an endless one ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest sizes of one request. A service in front of strangers sets them lower."""

    k: int = 10_000
    """Hits asked for."""
    candidates: int = 10_000
    """Items retrieved before ordering by ``rank_by``, and items that a reranker sees."""
    events: int = 100_000
    """Events given: ``history`` and ``new_events`` together. Stored ones do not count."""
    ids: int = 1_000_000
    """Ids of ``exclude``, of ``allow``, and of one rule."""
    retrievers: int = 64
    """Names in ``retrievers``."""
    user_features: int = 1_000
    """Columns of ``user_features``, and names in ``rank_by``."""
    rules: int = 100
    """Business rules."""
    text: int = 1_000
    """Characters of an id, a name or a value of ``user_features``; actions of one event."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise InputError(f"Limits.{field.name} must be a positive integer, got {shown(value)}")

    def check(self, request: Request) -> None:
        """Refuse a request that is too large.

        Raises:
            InputError: one line saying what is too large and which limit it passes.
        """
        for name in ("k", "candidates"):
            self._most(name, getattr(request, name), getattr(self, name), name)
        if request.reranker is not None:
            self._most("reranker: num_reordered", request.reranker.num_reordered, self.candidates, "candidates")
        self._most("retrievers", len(request.retrievers), self.retrievers, "retrievers")
        self._most("rules holds", len(request.rules), self.rules, "rules")
        for rule in request.rules:
            for named in (getattr(rule, "values", None), getattr(rule, "items", None)):
                if isinstance(named, Sized):
                    self._most(f"a rule {type(rule).__name__} names", len(named), self.ids, "ids")
        events = len(request.history or ()) + len(request.new_events)
        self._most("history and new_events hold", events, self.events, "events")
        for name in ("exclude", "allow"):
            ids = getattr(request, name)
            if ids is not None:
                self._most(f"{name} holds", _size(ids, self.ids), self.ids, "ids")
        for name in ("user_features", "rank_by"):
            given = getattr(request, name)
            if isinstance(given, Mapping):
                self._most(f"{name} names", len(given), self.user_features, "user_features")
                for column, value in given.items():
                    self._text(f"{name} {shown(column)}", value)
        for name in ("user_id", "surface"):
            self._text(name, getattr(request, name))
        for number, event in enumerate([*(request.history or ()), *request.new_events]):
            for name in ("item_id", "surface", "actions", "unknown"):
                value = getattr(event, name)
                if isinstance(value, Sized) and len(value) > self.text:
                    self._text(f"event {number}: {name}", value)

    def _text(self, what: str, value: Any) -> None:
        if isinstance(value, Sized):
            self._most(f"{what} has length", len(value), self.text, "text")

    def _most(self, what: str, found: int, most: int, name: str) -> None:
        if found > most:
            raise InputError(f"{what} {shown(found)}, more than the {most:,} that are answered (Limits.{name})")


def _size(values: Iterable[Any], most: int) -> int:
    return len(values) if isinstance(values, Sized) else sum(1 for _ in islice(values, most + 1))


def collection(name: str, values: Any) -> Any:
    """A collection of ids that may be read more than once.

    Raises:
        InputError: it is none.
    """
    if values is None or isinstance(values, (Sequence, Set)) and not isinstance(values, (str, bytes, bytearray)):
        return values
    if isinstance(values, (str, bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a collection of item ids, got the single value {shown(values)}")
    if not isinstance(values, Sized):
        return taken(name, values)
    _length(name, values)
    return values  # a series or an array


def taken(name: str, values: Any) -> list[Any]:
    """The elements of an iterable, as long as it ends.

    Raises:
        InputError: there are too many.
    """
    many = isinstance(values, Sized) and _length(name, values) > MOST_OF_ANYTHING
    found = [] if many else list(islice(values, MOST_OF_ANYTHING + 1))
    if many or len(found) > MOST_OF_ANYTHING:
        raise InputError(f"{name} holds more than {MOST_OF_ANYTHING:,} ids (an endless iterator?)")
    return found


def _length(name: str, values: Any) -> int:
    try:
        return len(values)
    except TypeError:  # an array of no dimension
        raise InputError(f"{name} must be a collection of item ids, got the single value {shown(values)}") from None


def weights_of(rank_by: Any) -> None:
    """Check ``rank_by``: None, a name, or finite weights by name.

    Raises:
        InputError: it is something else.
    """
    if rank_by is None or isinstance(rank_by, str):
        return
    if not isinstance(rank_by, Mapping):
        raise InputError(f"rank_by must be an action or weights of actions, got {shown(rank_by)}")
    for name, weight in rank_by.items():
        if not isinstance(name, str):
            raise InputError(f"rank_by: {shown(name)} is no name of an action")
        try:
            good = not isinstance(weight, (bool, str, bytes)) and math.isfinite(float(weight))
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good or abs(float(weight)) > 1e30:
            raise InputError(f"rank_by: the weight of {shown(name)} must be a finite number, got {shown(weight)}")
