"""A request in the internal numbers of one snapshot.

Suffixes: E = exclusions, N = allowed items, K = user features.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Closed, DamagedHistory, InputError, SourceUnavailable, shown
from recsys.events import UNKNOWN_ITEM, History
from recsys.retrieval.history_sources.bundle import BundleHistories, no_histories
from recsys.retrieval.history_sources.event_text import plain_id
from recsys.retrieval.history_sources.reader import HistoryReader
from recsys.retrieval.history_sources.reading import StoredHistory
from recsys.retrieval.history_sources.source import HistorySource
from recsys.retrieval.limits import Limits
from recsys.retrieval.request import Request, is_cache_key
from recsys.retrieval.rules.plan import RulePlan
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.user_features import encoded_user, stored_user
from recsys.vocabulary import empty_history

__all__ = [
    "Found",
    "Ints",
    "Question",
    "action_weights",
    "candidates_wanted",
    "own_user_id",
    "question_of",
    "questions_of",
    "sorted_ids",
    "source_of",
]

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
    state_key: str | int | None
    """Under which the user's state is kept; None = it is not."""

    @property
    def search_key(self) -> tuple[Any, ...]:
        """Questions with equal keys can be searched together."""
        return (self.num_wanted, self.allow_key)


def questions_of(
    snapshot: Snapshot,
    requests: Sequence[Request],
    now: float,
    limits: Limits | None = None,
    *,
    keep_states: bool = True,
) -> list[Question | InputError | SourceUnavailable | Closed]:
    """Translate requests, with one read of the source of histories; what is wrong with one stands in its place.

    Args:
        snapshot: what will answer them.
        requests: who asks, for what.
        now: seconds since 1970, for requests that name no time.
        limits: of the size of each; None = the default ones.
        keep_states: False for users who are not expected again.
    """
    users: dict[int, Any] = {}
    results: list[Any] = [None] * len(requests)
    for row, request in enumerate(requests):
        if request.user_id is not None:
            try:
                users[row] = own_user_id(snapshot, request.user_id)
            except InputError as error:
                results[row] = error
    stored: dict[int, StoredHistory | None] = {}
    if users and (reader := snapshot.reader) is not None:
        for row, found in _read(reader, users).items():
            if isinstance(found, Exception):
                results[row] = found
            else:
                stored[row] = found
    for row, request in enumerate(requests):
        if results[row] is None:
            try:
                results[row] = question_of(snapshot, request, now, stored.get(row), limits, keep_states=keep_states)
            except InputError as error:
                results[row] = error
    return results


def _read(
    reader: HistoryReader, users: dict[int, Any]
) -> dict[int, StoredHistory | None | InputError | SourceUnavailable | Closed]:
    """What the source says of each user; one whose events cannot be read fails alone."""
    try:
        return dict(zip(users, reader.read(list(users.values())), strict=True))
    except (InputError, DamagedHistory) as error:
        if len(users) == 1:
            return dict.fromkeys(users, error)
    except (SourceUnavailable, Closed) as error:
        return dict.fromkeys(users, error)
    return {row: found for one in users.items() for row, found in _read(reader, dict([one])).items()}


def question_of(
    snapshot: Snapshot,
    request: Request,
    now: float,
    stored: StoredHistory | None = None,
    limits: Limits | None = None,
    *,
    keep_states: bool = True,
) -> Question:
    """Translate a request.

    Args:
        snapshot: what will answer it.
        request: who asks, for what.
        now: seconds since 1970, for a request that names no time.
        stored: what the source of histories says of the user; None for nobody or an unknown one.
        limits: of its size; None = the default ones.
        keep_states: False for users who are not expected again.

    Raises:
        InputError: a request beyond the limits, an unknown retriever or action.
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
        user_K = stored_user(bundle, request.user_id)
        if stored is not None:
            start = stored.history
            if stored.num_strange_actions:
                notes.append(f"{stored.num_strange_actions} stored events name actions outside this bundle")
        elif isinstance(snapshot.source, BundleHistories):
            notes.append(f"user {shown(request.user_id)} is not in this bundle; answered as for a new user")
        else:
            notes.append(f"no event of user {shown(request.user_id)} is stored; answered as for a new user")
    if request.user_features is not None:
        user_K = encoded_user(bundle, request.user_features)
    history = words.history([*(request.history or ()), *request.new_events], after=start)
    num_strange = int((history.item == UNKNOWN_ITEM).sum())
    if num_strange:
        notes.append(f"{num_strange} events are of items outside the catalogue")
    excluded = words.items.index(request.exclude)
    exclude_E = sorted_ids(np.concatenate([excluded, history.item]) if request.exclude_history else excluded)
    withdrawn_G = bundle.withdrawn_G
    allow_N, num_reachable = None, len(words.items) - len(withdrawn_G) - int((~_among(exclude_E, withdrawn_G)).sum())
    if request.allow is not None:
        asked = words.items.index(request.allow)
        if len(withdrawn_G):
            asked = np.where(_among(asked, withdrawn_G), -1, asked)
        allow_N = sorted_ids(asked)
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
        num_wanted=candidates_wanted(request, rules),
        num_reachable=num_reachable,
        notes=notes,
        user_K=user_K,
        state_key=_state_key(snapshot, request) if keep_states else None,
    )


def candidates_wanted(request: Request, rules: RulePlan) -> int:
    """Candidates that a request retrieves first; more where its rules leave fewer than k of them."""
    return max(
        request.k,
        0 if request.rank_by is None and not rules.needs_pool else request.candidates,
        0 if request.reranker is None else request.reranker.num_reordered,
    )


def source_of(snapshot: Snapshot) -> HistorySource:
    """Where histories of users come from.

    Raises:
        InputError: from nowhere.
    """
    if snapshot.source is None:
        raise no_histories(snapshot.bundle)
    return snapshot.source


def own_user_id(snapshot: Snapshot, user_id: Any) -> Any:
    """A user's id as sources are asked for it: in the type of the bundle's users, where it has some.

    Raises:
        InputError: it is neither a string nor an integer; or there is no source.
    """
    if not isinstance(source_of(snapshot), BundleHistories):  # which itself finds nobody by an odd id
        user_id = plain_id(user_id, "user_id")
    histories = snapshot.bundle.histories
    own = None if histories is None else histories.users.own(user_id)
    return user_id if own is None else own


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


def _state_key(snapshot: Snapshot, request: Request) -> str | int | None:
    """The key the request names, else its user, where that is an id of reasonable size: in the type of the bundle's
    users, so that somebody who is called 7 and "7" has one state, to be forgotten by one name."""
    if request.cache_key is not None or request.user_id is None:
        return request.cache_key
    user_id = own_user_id(snapshot, request.user_id)
    user_id = int(user_id) if isinstance(user_id, np.integer) else user_id
    return user_id if is_cache_key(user_id) else None


def _among(index: Ints, sorted_G: Ints) -> NDArray[np.bool_]:
    if not len(sorted_G):
        return np.zeros(len(index), dtype=np.bool_)
    found: NDArray[np.bool_] = sorted_G[np.searchsorted(sorted_G, index).clip(max=len(sorted_G) - 1)] == index
    return found


def sorted_ids(index: Ints) -> Ints:
    """Known ones of internal ids, rising, each once; ``np.unique`` takes many times as long."""
    rising = np.sort(index[index >= 0])
    return rising if len(rising) < 2 else rising[np.concatenate([[True], rising[1:] != rising[:-1]])]
