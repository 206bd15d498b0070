"""The embedded recommender: a bundle in memory, answering requests from any thread.

Suffixes: B = requests, C = candidates of a request, E = exclusions, N = allowed items, A = actions, I = items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import UNKNOWN_ITEM, Event, History
from recsys.index.hits import SourcedHits
from recsys.kernels.topk import topk_smaller_id
from recsys.retrieval.bundle_retrievers import bundle_retrievers
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.protocol import Retriever, source_labels
from recsys.retrieval.request import Request
from recsys.retrieval.user_features import encoded_user
from recsys.user_state import UserStates
from recsys.vocabulary import empty_history

__all__ = ["Recommender"]

BATCH = 256
"""Requests encoded together; bounds the memory of :meth:`Recommender.recommend_batch`, not its results."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Question:
    """A request in internal numbers."""

    request: Request
    history: History
    exclude_E: Ints
    """Sorted, each once."""
    allow_N: Ints | None
    """Sorted, each once; exclusions not yet taken out."""
    at: int
    surface: int
    num_wanted: int
    num_reachable: int
    notes: list[str]
    user_K: Floats
    """Features of the user, zeros where unknown."""

    @property
    def search_key(self) -> tuple[Any, ...]:
        """Questions with equal keys can be searched together."""
        allow = None if self.allow_N is None else self.allow_N.tobytes()
        return (self.num_wanted, allow)


Found = list[tuple[int, float, str]]
"""Internal item id, retrieval score, retriever; best first."""


class Recommender:
    """Recommends from a bundle. Nothing in it changes after loading, so one instance serves all threads.

    Example:
        >>> rec = Recommender.load("bundle/")                                               # doctest: +SKIP
        >>> page = rec.recommend(history=[Event(item_id="b42", actions="click")], k=20)     # doctest: +SKIP
        >>> [(hit.item_id, hit.score, hit.actions) for hit in page]                         # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, *, clock: Callable[[], float] = time.time) -> None:
        """Serve a loaded bundle; ``clock`` gives the seconds since 1970 of requests that name no time."""
        self.bundle = bundle
        self._clock = clock
        self._device = bundle.vectors.device
        self._retrievers: dict[str, Retriever] = bundle_retrievers(bundle)
        self._length_I = bundle.vectors.norm(dim=1)

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu") -> Recommender:
        """Open a bundle folder.

        Raises:
            InputError: a part of the bundle is missing, damaged or foreign; one line says which and what to do.
        """
        return cls(Bundle.open(path, device))

    def save(self, path: Path | str) -> None:
        """Write the bundle to another folder."""
        self.bundle.save(path)

    @property
    def retrievers(self) -> tuple[str, ...]:
        """Names to use in ``retrievers=``."""
        return tuple(self._retrievers)

    @property
    def actions(self) -> tuple[str, ...]:
        """Keys of :attr:`Hit.actions`; none where the data had too few actions to learn probabilities from."""
        return self.bundle.vocabulary.actions if self.bundle.model.action_head is not None else ()

    @property
    def items(self) -> pl.DataFrame:
        """The item table: item_id and every column it was prepared with."""
        return self.bundle.items

    @property
    def user_ids(self) -> pl.Series:
        """Users whose events the bundle holds."""
        histories = self.bundle.histories
        return pl.Series("user_id", [], dtype=pl.String) if histories is None else histories.users.ids

    # -- requests --------------------------------------------------------------------------------------------------

    def recommend(
        self,
        user_id: Any = None,
        *,
        history: Sequence[Event] | None = None,
        new_events: Sequence[Event] = (),
        k: int = 10,
        retrievers: Sequence[str] = ("dense",),
        exclude: Iterable[Any] = (),
        allow: Iterable[Any] | None = None,
        exclude_history: bool = True,
        at: int | None = None,
        surface: str | None = None,
        rank: bool = True,
        rank_by: str | Mapping[str, float] | None = None,
        candidates: int = 100,
        user_features: Mapping[str, Any] | None = None,
    ) -> Page:
        """Retrieve and rank for one user; both read the same keys and values of one pass over the history.

        The page is in retrieval order with probabilities attached; with ``rank_by`` it is in their order. ``at`` sets
        the time of the request and does not cut the history: what counts is what the caller, or the bundle, says
        happened. Odd cases have plain answers: a user without events, or whom the bundle does not know, gets what the
        model says of an empty history; a page is shorter, or empty, where exclusions leave fewer than k items.
        :attr:`Page.notes` says so.

        Args:
            user_id, history, new_events, k, retrievers, exclude, allow, exclude_history, at, surface, rank, rank_by,
                candidates, user_features: see :class:`recsys.retrieval.request.Request`.

        Raises:
            InputError: a request that cannot be meant (unknown retriever or action, k below 1, both user_id and
                history), or a user id where the bundle holds no histories.
        """
        request = Request(
            user_id=user_id, history=history, new_events=new_events, k=k, retrievers=retrievers, exclude=exclude,
            allow=allow, exclude_history=exclude_history, at=at, surface=surface, rank=rank, rank_by=rank_by,
            candidates=candidates, user_features=user_features,
        )  # fmt: skip
        return self.recommend_batch([request])[0]

    def recommend_batch(self, requests: Sequence[Request | Mapping[str, Any]]) -> list[Page]:
        """Answer many requests, each as :meth:`recommend` would, in fewer and larger passes.

        Args:
            requests: :class:`Request` objects, or mappings of the same fields.
        """
        full = [request if isinstance(request, Request) else _request(request) for request in requests]
        pages: list[Page] = []
        for begin in range(0, len(full), BATCH):
            pages += self._answer([self._question(request) for request in full[begin : begin + BATCH]])
        return pages

    def recommend_frame(
        self, users: Iterable[Any] | pl.DataFrame | None = None, k: int = 10, **settings: Any
    ) -> pl.DataFrame:
        """Recommendations for stored users as a table.

        Args:
            users: user ids, or a frame (polars or pandas) with a column ``user_id``; None = all stored users.
            k: hits per user.
            settings: further fields of :class:`Request`, the same for all users.

        Returns:
            Columns user_id, rank (from 1), item_id, score, retriever and prob_ACTION for every action (unless
            ``rank=False``); users in the order given, ids in the types of the data. A user without hits has no row.
        """
        if users is None:
            wanted = self.user_ids.to_list()
        else:
            given: Any = users
            column = given["user_id"] if hasattr(given, "columns") else given
            wanted = column.to_list() if hasattr(column, "to_list") else list(column)
        histories = self._stored()
        rows: list[tuple[Any, ...]] = []
        actions = self.actions if settings.get("rank", True) else ()
        for begin in range(0, len(wanted), BATCH):
            part = wanted[begin : begin + BATCH]
            pages = self.recommend_batch([{**settings, "user_id": user, "k": k} for user in part])
            for user, page in zip(part, pages, strict=True):
                known = int(histories.users.index([user])[0])
                shown = histories.users.take([known])[0] if known >= 0 else user
                for place, hit in enumerate(page, start=1):
                    rows.append((shown, place, hit.item_id, hit.score, hit.retriever, *hit.actions.values()))
        schema: dict[str, Any] = {
            "user_id": histories.users.dtype,
            "rank": pl.UInt32,
            "item_id": self.bundle.vocabulary.items.dtype,
            "score": pl.Float32,
            "retriever": pl.String,
        }
        schema |= {f"prob_{action}": pl.Float32 for action in actions}
        return pl.DataFrame(rows, schema=schema, orient="row", strict=False)

    @torch.inference_mode()
    def similar_items(self, item_id: Any, k: int = 10) -> Page:
        """The items nearest to one, by cosine of item vectors; equal ones by place in the catalogue.

        Raises:
            InputError: the catalogue does not hold the item.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k must be a positive integer, got {k!r}")
        item = int(self.bundle.vocabulary.items.index([item_id])[0])
        if item < 0:
            raise InputError(f"item {item_id!r} is not in the catalogue of {self.bundle.path}")
        length_I = self._length_I.clamp_min(1e-12)
        cosine_I = (self.bundle.vectors @ (self.bundle.vectors[item] / length_I[item])) / length_I
        cosine_I[item] = -torch.inf
        num_hits = min(k, len(cosine_I) - 1)
        every_I = torch.arange(len(cosine_I), device=self._device)
        best_1K, near_1K = topk_smaller_id(cosine_I[None], every_I[None], num_hits)
        ids = self.bundle.vocabulary.items.take(near_1K[0].tolist())
        hits = [Hit(name, score, {}, "similar") for name, score in zip(ids, best_1K[0].tolist(), strict=True)]
        return Page(tuple(hits), len(cosine_I) - 1, _short(num_hits, k, len(cosine_I) - 1))

    # -- one batch -------------------------------------------------------------------------------------------------

    def _stored(self) -> Any:
        if self.bundle.histories is None:
            raise InputError(
                f"{self.bundle.path} holds no histories, so a user id says nothing to it; give history=[Event(…)], or "
                "export with --histories"
            )
        return self.bundle.histories

    def _question(self, request: Request) -> _Question:
        words, notes = self.bundle.vocabulary, []
        for name in request.retrievers:
            if name not in self._retrievers:
                raise InputError(f"there is no retriever {name!r} in this bundle; it has {', '.join(self._retrievers)}")
        self._weights(request)
        start, user_K = empty_history(), np.zeros(self.bundle.model.config.user_dim, dtype=np.float32)
        if request.user_id is not None:
            histories = self._stored()
            user = int(histories.users.index([request.user_id])[0])
            if user >= 0:
                start = histories.events.history(user)
                if self.bundle.user_features_UK is not None:
                    user_K = self.bundle.user_features_UK[user].cpu().numpy()
            else:
                notes.append(f"user {request.user_id!r} is not in this bundle; answered as for a new user")
        if request.user_features is not None:
            user_K = encoded_user(self.bundle, request.user_features)
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
        return _Question(
            request=request,
            history=history,
            exclude_E=exclude_E,
            allow_N=allow_N,
            at=self._time(request, history),
            surface=words.surface_index(request.surface),
            num_wanted=request.k if request.rank_by is None else max(request.k, request.candidates),
            num_reachable=num_reachable,
            notes=notes,
            user_K=user_K,
        )

    def _time(self, request: Request, history: History) -> int:
        if request.at is not None:
            return int(request.at)
        if self.bundle.vocabulary.clock == "real":
            return int(self._clock())
        return int(history.timestamp[-1]) if len(history) else self.bundle.vocabulary.max_timestamp

    def _weights(self, request: Request) -> list[float]:
        """Weight of each action in the final order."""
        given = {request.rank_by: 1.0} if isinstance(request.rank_by, str) else dict(request.rank_by or {})
        for name in given:
            if name not in self.actions:
                raise InputError(f"rank_by: this model ranks by {list(self.actions)}, not by {name!r}")
        return [float(given.get(name, 0.0)) for name in self.actions]

    def _answer(self, questions: Sequence[_Question]) -> list[Page]:
        if not questions:
            return []
        with torch.inference_mode():
            ranks = bool(self.actions) and any(question.request.rank for question in questions)
            asked = {name for question in questions for name in question.request.retrievers}
            keep_cache = ranks or any(self._retrievers[name].reads_cache for name in asked)
            histories = [question.history for question in questions]
            user_BK = np.stack([question.user_K for question in questions])
            states = self.bundle.model.encode(histories, keep_cache=keep_cache, user_BK=user_BK)
            found = self._search(states, questions)
            probability = self._rank(states, questions, found)
        return [self._page(*row) for row in zip(questions, found, probability, strict=True)]

    def _search(self, states: UserStates, questions: Sequence[_Question]) -> list[Found]:
        """The candidates of every question, in the order of retrieval."""
        lists: list[dict[str, Found]] = [{} for _ in questions]
        for name in dict.fromkeys(name for question in questions for name in question.request.retrievers):
            groups: dict[tuple[Any, ...], list[int]] = {}
            for row, question in enumerate(questions):
                if name in question.request.retrievers and question.num_reachable:
                    groups.setdefault(question.search_key, []).append(row)
            for rows in groups.values():
                group = [questions[row] for row in rows]
                first = group[0]
                hits = self._retrievers[name].search(
                    states.select(self._tensor(rows)),
                    first.num_wanted,
                    at_B=self._tensor([question.at for question in group]),
                    surface_B=self._tensor([question.surface for question in group]),
                    exclude_QE=self._tensor(_padded([question.exclude_E for question in group])),
                    allow_N=None if first.allow_N is None else self._tensor(first.allow_N),
                )
                labels = source_labels(self._retrievers[name])
                source_QK = hits.source_QK if isinstance(hits, SourcedHits) else torch.zeros_like(hits.ids_QK)
                parts = (hits.ids_QK.tolist(), hits.scores_QK.tolist(), source_QK.tolist())
                for row, *columns in zip(rows, *parts, strict=True):
                    found = zip(*columns, strict=True)
                    lists[row][name] = [(i, score, labels[source]) for i, score, source in found if i >= 0]
        return [
            _take_turns([parts.get(name, []) for name in question.request.retrievers])[: question.num_wanted]
            for parts, question in zip(lists, questions, strict=True)
        ]

    def _rank(
        self, states: UserStates, questions: Sequence[_Question], found: Sequence[Found]
    ) -> list[NDArray[np.float32] | None]:
        """[C, A] probabilities of every question's candidates; None where none were asked for."""
        rows = [row for row, question in enumerate(questions) if question.request.rank and found[row]]
        result: list[NDArray[np.float32] | None] = [None] * len(questions)
        if rows and self.actions:
            item_BC = self._tensor(_padded([np.array([hit[0] for hit in found[row]], dtype=np.int64) for row in rows]))
            surface_B = self._tensor([questions[row].surface for row in rows])
            ranked = states.select(self._tensor(rows))
            at_B = self._tensor([questions[row].at for row in rows])
            surface_BC = surface_B[:, None].expand_as(item_BC)
            feature_BCF = self.bundle.features().of(ranked, item_BC, at_B, surface_BC)
            logits = self.bundle.model.rank(ranked, item_BC, at_B, surface_BC, feature_BCF)
            probability = self.bundle.calibration.probabilities(logits).cpu().numpy()
            for place, row in enumerate(rows):
                result[row] = probability[place, : len(found[row])]
        return result

    def _page(self, question: _Question, found: Found, probability: NDArray[np.float32] | None) -> Page:
        request = question.request
        order = np.arange(len(found))
        if request.rank_by is not None and probability is not None:
            order = np.argsort(-(probability @ np.array(self._weights(request), dtype=np.float32)), kind="stable")
        order = order[: request.k]
        names = self.bundle.vocabulary.items.take([found[place][0] for place in order])
        hits = []
        for place, name in zip(order, names, strict=True):
            chances = {} if probability is None else dict(zip(self.actions, probability[place].tolist(), strict=True))
            hits.append(Hit(name, found[place][1], chances, found[place][2]))
        notes = (*question.notes, *_short(len(hits), request.k, question.num_reachable))
        return Page(tuple(hits), question.num_reachable, notes)

    def _tensor(self, values: Sequence[int] | Ints) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self._device)


def _request(fields: Mapping[str, Any]) -> Request:
    unknown = sorted(set(fields) - set(Request.__dataclass_fields__))
    if unknown:
        raise InputError(f"a request has no field {unknown[0]!r}; its fields are {list(Request.__dataclass_fields__)}")
    return Request(**fields)


def _known(index: Ints) -> Ints:
    """Sorted, each once, without unknown ones."""
    return np.unique(index[index >= 0])


def _padded(parts: Sequence[Ints]) -> Ints:
    """Rows of different length as one matrix, -1 where there is nothing."""
    matrix = np.full((len(parts), max(len(part) for part in parts)), -1, dtype=np.int64)
    for row, part in zip(matrix, parts, strict=True):
        row[: len(part)] = part
    return matrix


def _take_turns(lists: Sequence[Found]) -> Found:
    """Best of each list, then second of each, and so on; an item stays where it first came up."""
    merged: dict[int, tuple[int, float, str]] = {}
    for turn in zip_longest(*lists):
        for hit in turn:
            if hit is not None:
                merged.setdefault(hit[0], hit)
    return list(merged.values())


def _short(num_hits: int, k: int, num_reachable: int) -> tuple[str, ...]:
    """Why a page is shorter than asked for."""
    if num_hits >= k:
        return ()
    if num_reachable < k:
        return (f"{k} items were asked for and {num_reachable} were left to choose from",)
    return (f"the retrievers found {num_hits} of the {k} items asked for; add one that reaches more, such as 'dense'",)
