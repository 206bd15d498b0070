"""The same requests answered by recommenders that differ in how the states of users come about.

Suffixes: D = width, U = users.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.blocks import Block
from recsys.bundle import Bundle, StoredHistories
from recsys.calibration import Calibration
from recsys.events import Event, EventLog, History
from recsys.index.exact import ExactIndex
from recsys.index.item_graph import ItemGraph
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.request import Request
from recsys.state_store import StoreCounts, UserStateStore
from recsys.user_state import UserStates
from recsys.vocabulary import IdMap, Vocabulary

__all__ = ["PAGE", "Visit", "Visits", "bench_bundle", "counted_ratio", "counted_work", "recommenders", "seen_ratio"]

NUM_ITEMS = 10_000
DIM = 64
PAGE = 20
"""Items of a page; what is ranked are the candidates."""
NEW_SHARE = 0.2
_MOST_EVENTS = 48
"""Events that a user brings along before another one takes their place: an export makes them part of the bundle."""
_APART = 32
"""Visits between two of one user, at least."""
_START = 1_700_000_000
_ACTIONS = ("click", "like", "buy")


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
            item, action = int(self._rng.integers(NUM_ITEMS)), _ACTIONS[int(self._rng.integers(3))]
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


def bench_bundle(window: int, num_users: int, *, plain: bool = False, num_items: int = NUM_ITEMS) -> Bundle:
    """The model and catalogue of ``bench unify`` with a window, and users whose histories are longer than it.

    Args:
        plain: the same projections around the softmax of ``scaled_dot_product_attention(is_causal=True)``, without
            times.
    """
    torch.manual_seed(0)
    model = UnifiedModel(
        ModelConfig(
            num_items=num_items,
            num_actions=3,
            num_surfaces=2,
            positive_mask=3,
            dim=DIM,
            num_blocks=2,
            num_heads=2,
            block="hstu",
            window=window,
            time_encoding="none" if plain else "bias",
        )  # fmt: skip
    ).eval()
    if plain:
        for block in model.encoder.blocks:
            assert isinstance(block, Block)
            block.kind = "softmax"
    vectors = model.item_vectors()
    events = _events(window, model.config.stride, num_users, num_items)
    nothing = torch.zeros(0)
    graph = ItemGraph((), 0, torch.zeros(num_items + 1, dtype=torch.int64), nothing.int(), nothing)
    items = pl.DataFrame({"item_id": np.arange(num_items)})
    name = "plain" if plain else "model"
    files = {f"model/model.{kind}": f"{name} {window}" for kind in ("json", "safetensors")}
    return Bundle(
        path=Path(f"bench-{name}-{window}"),
        manifest={"checksum": f"{name} {window}", "files": files, "retrievers": ["dense"], "data_hash": "bench"},
        vocabulary=Vocabulary(
            items=IdMap(items["item_id"]), actions=_ACTIONS, surfaces=("", "home"), clock="real",
            max_timestamp=int(events.timestamp.max()),
        ),
        items=items,
        model=model,
        vectors=vectors,
        index=ExactIndex(vectors),
        graph_now=graph,
        graph_train=graph,
        histories=StoredHistories(IdMap(pl.Series(np.arange(num_users))), events),
        calibration=Calibration.identity(3),
        user_features_UK=None,
        past=None,
        trie=None,
    )  # fmt: skip


def _events(window: int, stride: int, num_users: int, num_items: int) -> EventLog:
    """Histories of every phase of the window, with gaps from seconds to weeks."""
    rng = np.random.default_rng(0)
    length_U = window + 1 + rng.permutation(num_users) % stride
    total = int(length_U.sum())
    offsets = np.concatenate([[0], np.cumsum(length_U)])
    gaps = np.exp(rng.uniform(0, 14, total)).astype(np.int64)
    return EventLog(
        offsets=offsets,
        item=rng.integers(0, num_items, total),
        timestamp=_START
        + np.concatenate([np.cumsum(gaps[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]),
        yes=rng.integers(0, 8, total),
        known=np.full(total, 7),
        surface=rng.integers(0, 2, total),
        value=np.full(total, np.nan, dtype=np.float32),
        time_known=np.ones(total, dtype=np.bool_),
    )


class TwoEncodings(UserStateStore):
    """States of two models: search reads those of one, ranking those of the other; nothing is kept.

    It favours two models wherever they could be favoured: both run in one process on one reading of the history, the
    encoder of retrieval leaves keys and values out, the candidates do not travel, and there is one page.
    """

    def __init__(self, model: UnifiedModel, model_hash: str) -> None:
        super().__init__(model, model_hash=model_hash, max_bytes=0, host_bytes=0)
        self.ranker = UserStateStore(copy.deepcopy(model), model_hash=model_hash, max_bytes=0, host_bytes=0)

    @torch.no_grad()
    def states(
        self,
        keys: Sequence[Hashable | None],
        histories: Sequence[History],
        *,
        keep_cache: bool = True,
        user_BK: Tensor | NDArray[np.float32] | None = None,
        item_ID: Tensor | None = None,
    ) -> tuple[UserStates, StoreCounts]:
        searched, counts = super().states(keys, histories, keep_cache=False, user_BK=user_BK, item_ID=item_ID)
        ranked, more = self.ranker.states(keys, histories, keep_cache=keep_cache, user_BK=user_BK, item_ID=item_ID)
        return replace(ranked, last_BD=searched.last_BD), counts + more


def recommenders(bundle: Bundle, plain: Bundle, num_states: int) -> dict[str, Recommender]:
    """The ways by name: two encodings; one; one and kept states; the same of few users; one of plain attention.

    Args:
        num_states: states of full windows that the large store has room for; the small one has room for a fourth of
            the users who return, if these are half as many.
    """
    model, name = bundle.model, bundle.model_hash

    def kept(most: int) -> UserStateStore:
        store = UserStateStore(model, model_hash=name, max_bytes=0, host_bytes=0)
        room = (most + 1) * store.layout.state_bytes(model.config.window)
        return UserStateStore(model, model_hash=name, max_bytes=room, host_bytes=0)

    def made(own: Bundle, states: UserStateStore) -> Recommender:
        recommender = Recommender(own, states=states)
        recommender.observe()
        return recommender

    none = UserStateStore(model, model_hash=name, max_bytes=0, host_bytes=0)
    plain_none = UserStateStore(plain.model, model_hash=plain.model_hash, max_bytes=0, host_bytes=0)
    return {
        "separate": made(bundle, TwoEncodings(model, name)),
        "shared": made(bundle, none),
        "kept": made(bundle, kept(num_states)),
        "few kept": made(bundle, kept(num_states // 8)),
        "plain": made(plain, plain_none),
    }
