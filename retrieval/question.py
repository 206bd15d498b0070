"""A request in the internal numbers of one snapshot.

Suffixes: E = exclusions, N = allowed items, K = user features.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle import StoredHistories
from recsys.errors import InputError, shown
from recsys.events import UNKNOWN_ITEM, History
from recsys.retrieval.limits import Limits
from recsys.retrieval.request import Request
from recsys.retrieval.rules.plan import RulePlan
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.user_features import encoded_user
from recsys.vocabulary import empty_history

__all__ = ["Found", "Ints", "Question", "action_weights", "question_of", "stored_histories"]

Found = list[tuple[int, float, str]]
"""Internal item id, retrieval score, retriever; best first."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a snapshot."""

    request: Request
    history: History
    exclude_E: Ints
    """Sorted, each once."""
    allow_N: Ints | None
    """Sorted, each once; exclusions not yet taken out."""
    allow_key: Hashable
    """Equal for equal ``allow_N``."""
    rules: RulePlan
    at: int
    surface: int
    num_wanted: int
    """Candidates to retrieve."""
    num_reachable: int
    notes: list[str]
    user_K: NDArray[np.float32]
    """Features of the user, zeros where unknown."""

    @property
    def search_key(self) -> tuple[Any, ...]:
        """Questions with equal keys can be searched together."""
        return (self.num_wanted, self.allow_key)


def question_of(snapshot: Snapshot, request: Request, now: float, limits: Limits | None = None) -> Question:
    """Translate a request.

    Args:
        snapshot: what will answer it.
        request: who asks, for what.
        now: seconds since 1970, for a request that names no time.
        limits: of its size; None = the default ones.

    Raises:
        InputError: a request beyond the limits, an unknown retriever or action, or a user id where the bundle holds no
            histories.
    """
    (limits or Limits()).check(request)
    bundle, notes = snapshot.bundle, list[str]()
    words = bundle.vocabulary
    for name in request.retrievers:
        if name not in snapshot.retrievers:
            there = ", ".join(snapshot.retrievers)
            raise InputError(f"there is no retriever {shown(name)} in this bundle; it has {there}")
    action_weights(snapshot, request)
    start, user_K = empty_history(), np.zeros(bundle.model.config.user_dim, dtype=np.float32)
    if request.user_id is not None:
        histories = stored_histories(snapshot)
        user = int(histories.users.index([request.user_id])[0])
        if user >= 0:
            start = histories.events.history(user)
            if bundle.user_features_UK is not None:
                user_K = bundle.user_features_UK[user].cpu().numpy()
        else:
            notes.append(f"user {shown(request.user_id)} is not in this bundle; answered as for a new user")
    if request.user_features is not None:
        user_K = encoded_user(bundle, request.user_features)
    history = words.history([*(request.history or ()), *request.new_events], after=start)
    num_strange = int((history.item == UNKNOWN_ITEM).sum())
    if num_strange:
        notes.append(f"{num_strange} events are of items outside the catalogue")
    exclude_E = _known(words.items.index(request.exclude))
    if request.exclude_history:
        exclude_E = _known(np.concatenate([exclude_E, history.item]))
    allow_N, num_reachable = None, len(words.items) - len(exclude_E)
    if request.allow is not None:
        asked = words.items.index(request.allow)
        allow_N = _known(asked)
        num_reachable = len(np.setdiff1d(allow_N, exclude_E, assume_unique=True))
        if (asked < 0).any():
            notes.append(f"{int((asked < 0).sum())} allowed ids are not in the catalogue")
    allow_key: Hashable = None if allow_N is None else allow_N.tobytes()
    rules = RulePlan.of(snapshot, request)
    notes += rules.notes
    if rules.allowed is not None:
        allow_key = rules.allowed if allow_N is None else (rules.allowed, allow_key)
        allow_N, num_reachable, said = rules.allow(allow_N, exclude_E)
        notes += said
    return Question(
        request=request,
        history=history,
        exclude_E=exclude_E,
        allow_N=allow_N,
        allow_key=allow_key,
        rules=rules,
        at=_time(snapshot, request, history, now),
        surface=words.surface_index(request.surface),
        num_wanted=request.k
        if request.rank_by is None and not rules.needs_pool
        else max(request.k, request.candidates),
        num_reachable=num_reachable,
        notes=notes,
        user_K=user_K,
    )


def stored_histories(snapshot: Snapshot) -> StoredHistories:
    """The histories of a bundle.

    Raises:
        InputError: it was written without them.
    """
    if snapshot.bundle.histories is None:
        raise InputError(
            f"{snapshot.bundle.path} holds no histories, so a user id says nothing to it; give history=[Event(…)], or "
            "export with --histories"
        )
    return snapshot.bundle.histories


def action_weights(snapshot: Snapshot, request: Request) -> list[float]:
    """Weight of each action in the final order.

    Raises:
        InputError: ``rank_by`` names an action that the model gives no probability of.
    """
    given = {request.rank_by: 1.0} if isinstance(request.rank_by, str) else dict(request.rank_by or {})
    for name in given:
        if name not in snapshot.actions:
            raise InputError(f"rank_by: this model ranks by {list(snapshot.actions)}, not by {shown(name)}")
    return [float(given.get(name, 0.0)) for name in snapshot.actions]


def _time(snapshot: Snapshot, request: Request, history: History, now: float) -> int:
    words = snapshot.bundle.vocabulary
    if request.at is not None:
        return int(request.at)
    if words.clock == "real":
        return int(now)
    return int(history.timestamp[-1]) if len(history) else words.max_timestamp


def _known(index: Ints) -> Ints:
    """Sorted, each once, without unknown ones."""
    return np.unique(index[index >= 0])
