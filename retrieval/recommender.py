"""The embedded recommender: a bundle in memory, answering requests from any thread.

Suffixes: I = items, K = hits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from recsys.bundle import Bundle
from recsys.errors import Closed, InputError, SourceUnavailable, shown
from recsys.events import Event
from recsys.kernels.topk import topk_smaller_id
from recsys.retrieval.answer import answer, short_notes
from recsys.retrieval.history_sources.bundle import no_histories
from recsys.retrieval.limits import Limits
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.question import Question, own_user_id, questions_of, source_of
from recsys.retrieval.request import Request
from recsys.retrieval.rules import Explore, Rule
from recsys.retrieval.snapshot import Snapshot, SourceChoice

__all__ = ["Recommender"]

BATCH = 256
"""Requests encoded together; bounds the memory of :meth:`Recommender.recommend_batch`, not its results."""


MOST_EXCLUSIONS = 1 << 23
"""Places of the matrix of excluded items of requests answered together."""


class Recommender:
    """Recommends from a bundle. Nothing in it changes after loading, so one instance serves all threads.

    Example:
        >>> rec = Recommender.load("bundle/")                                               # doctest: +SKIP
        >>> page = rec.recommend(history=[Event(item_id="b42", actions="click")], k=20)     # doctest: +SKIP
        >>> [(hit.item_id, hit.score, hit.actions) for hit in page]                         # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        clock: Callable[[], float] = time.time,
        history_source: SourceChoice = None,
        limits: Limits | None = None,
    ) -> None:
        """Serve a loaded bundle.

        Args:
            bundle: what to serve.
            clock: gives the seconds since 1970 of requests that name no time.
            history_source: where the events of a ``user_id`` come from and :meth:`append_events` puts them; None = the
                bundle's histories, read-only. It stays the caller's to close.
            limits: of the size of a request; None = the default ones.
        """
        self._clock, self.limits = clock, limits or Limits()
        self._snapshot = Snapshot.of(bundle, history_source)

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str = "cpu",
        *,
        history_source: SourceChoice = None,
        limits: Limits | None = None,
    ) -> Recommender:
        """Open a bundle folder.

        Args:
            path: the folder.
            device: ``cpu`` or ``cuda``.
            history_source: where the events of a ``user_id`` come from: a
                :class:`~recsys.retrieval.history_sources.source.HistorySource`, or ``over_bundle(source)`` for the
                bundle's histories continued by one; None = the bundle's histories.
            limits: of the size of a request; None = the default ones.

        Raises:
            InputError: a part of the bundle is missing, damaged or foreign; one line says which and what to do.
        """
        return cls(Bundle.open(path, device), history_source=history_source, limits=limits)

    def save(self, path: Path | str) -> None:
        """Write the bundle to another folder."""
        self.bundle.save(path)

    @property
    def bundle(self) -> Bundle:
        """What answers requests now."""
        return self._snapshot.bundle

    @property
    def retrievers(self) -> tuple[str, ...]:
        """Names to use in ``retrievers=``."""
        return tuple(self._snapshot.retrievers)

    @property
    def actions(self) -> tuple[str, ...]:
        """Keys of :attr:`Hit.actions`; none where the data had too few actions to learn probabilities from."""
        return self._snapshot.actions

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
        rules: Sequence[Rule] = (),
        max_candidates: int | None = None,
    ) -> Page:
        """Retrieve and rank for one user; both read the same keys and values of one pass over the history.

        The page is in retrieval order with probabilities attached; with ``rank_by`` it is in their order. ``at`` sets
        the time of the request and does not cut the history: what counts is what the caller, or the bundle, says
        happened. Odd cases have plain answers: a user without events, or whom the bundle does not know, gets what the
        model says of an empty history; a page is shorter, or empty, where exclusions leave fewer than k items.
        :attr:`Page.notes` says so.

        Args:
            user_id, history, new_events, k, retrievers, exclude, allow, exclude_history, at, surface, rank, rank_by,
                candidates, user_features, rules, max_candidates: see :class:`recsys.retrieval.request.Request`.

        Raises:
            InputError: a request that cannot be meant (unknown retriever or action, k below 1, both user_id and
                history) or is larger than :attr:`limits`, or a user id where the bundle holds no histories.
            SourceUnavailable: the user's history cannot be read now.
        """
        request = Request(
            user_id=user_id, history=history, new_events=new_events, k=k, retrievers=retrievers, exclude=exclude,
            allow=allow, exclude_history=exclude_history, at=at, surface=surface, rank=rank, rank_by=rank_by,
            candidates=candidates, user_features=user_features, rules=rules, max_candidates=max_candidates,
        )  # fmt: skip
        return self.recommend_batch([request])[0]

    def recommend_batch(self, requests: Sequence[Request | Mapping[str, Any]]) -> list[Page]:
        """Answer many requests, each as :meth:`recommend` would, in fewer and larger passes.

        Args:
            requests: :class:`Request` objects, or mappings of the same fields.

        Raises:
            InputError, SourceUnavailable: of the first request that :meth:`recommend` would refuse.
        """
        full = [request if isinstance(request, Request) else _request(request) for request in requests]
        snapshot, pages = self._snapshot, list[Page]()
        for begin in range(0, len(full), BATCH):
            questions = questions_of(snapshot, full[begin : begin + BATCH], self._clock(), self.limits)
            for question in questions:
                if not isinstance(question, Question):
                    raise question
            pages += _pages(snapshot, questions)
        return pages

    def recommend_each(self, requests: Sequence[Request]) -> list[Page | InputError | SourceUnavailable | Closed]:
        """As :meth:`recommend_batch`, for requests of different people: one that is refused has its error in its place.

        Args:
            requests: checked one by one where they were made.
        """
        snapshot, results = self._snapshot, list[Any]()
        for begin in range(0, len(requests), BATCH):
            questions = questions_of(snapshot, requests[begin : begin + BATCH], self._clock(), self.limits)
            pages = iter(_pages(snapshot, questions))
            results += [next(pages) if isinstance(question, Question) else question for question in questions]
        return results

    def append_events(self, user_id: Any, events: Sequence[Event]) -> None:
        """Add to a user's stored history; the next request that names the user sees it. Durable when it returns.

        An event without a time happened now, where the data has a real clock. Give times where an append may be
        repeated: equal events with a time count once.

        Raises:
            InputError: an id or event that cannot be meant, or the histories are the bundle's own, which stay as they
                are.
            SourceUnavailable: the source cannot be written now.
        """
        snapshot = self._snapshot
        if snapshot.bundle.vocabulary.clock == "real" and isinstance(events, Sequence):
            now = int(self._clock())
            events = [
                replace(event, timestamp=now) if isinstance(event, Event) and event.timestamp is None else event
                for event in events
            ]
        source_of(snapshot).append(own_user_id(snapshot, user_id), events)

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
            ``rank=False``), and propensity where a rule explores; users in the order given, ids in the types of the
            data. A user without hits has no row.
        """
        if users is None:
            wanted = self.user_ids.to_list()
        else:
            given: Any = users
            column = given["user_id"] if hasattr(given, "columns") else given
            wanted = column.to_list() if hasattr(column, "to_list") else list(column)
        snapshot = self._snapshot
        histories = snapshot.bundle.histories
        if snapshot.source is None or (users is None and histories is None):
            raise no_histories(snapshot.bundle)
        rows: list[tuple[Any, ...]] = []
        actions = self.actions if settings.get("rank", True) else ()
        explores = any(isinstance(rule, Explore) for rule in settings.get("rules", ()))
        for begin in range(0, len(wanted), BATCH):
            part = wanted[begin : begin + BATCH]
            pages = self.recommend_batch([{**settings, "user_id": user, "k": k} for user in part])
            for user, page in zip(part, pages, strict=True):
                shown = own_user_id(snapshot, user)
                for place, hit in enumerate(page, start=1):
                    chance = (hit.propensity,) if explores else ()
                    rows.append((shown, place, hit.item_id, hit.score, hit.retriever, *hit.actions.values(), *chance))
        schema: dict[str, Any] = {
            "user_id": pl.Series(wanted).dtype if histories is None else histories.users.dtype,
            "rank": pl.UInt32,
            "item_id": self.bundle.vocabulary.items.dtype,
            "score": pl.Float32,
            "retriever": pl.String,
        }
        schema |= {f"prob_{action}": pl.Float32 for action in actions}
        schema |= {"propensity": pl.Float64} if explores else {}
        return pl.DataFrame(rows, schema=schema, orient="row", strict=False)

    @torch.inference_mode()
    def similar_items(self, item_id: Any, k: int = 10) -> Page:
        """The items nearest to one, by cosine of item vectors; equal ones by place in the catalogue.

        Raises:
            InputError: the catalogue does not hold the item.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k must be a positive integer, got {shown(k)}")
        if k > self.limits.k:
            raise InputError(f"k {shown(k)}, more than the {self.limits.k:,} that are answered (Limits.k)")
        snapshot = self._snapshot
        bundle, length_I = snapshot.bundle, snapshot.length_I.clamp_min(1e-12)
        item = int(bundle.vocabulary.items.index([item_id])[0])
        if item < 0:
            raise InputError(f"item {shown(item_id)} is not in the catalogue of {bundle.path}")
        cosine_I = (bundle.vectors @ (bundle.vectors[item] / length_I[item])) / length_I
        cosine_I[item] = -torch.inf
        num_hits = min(k, len(cosine_I) - 1)
        every_I = torch.arange(len(cosine_I), device=snapshot.device)
        best_1K, near_1K = topk_smaller_id(cosine_I[None], every_I[None], num_hits)
        ids = bundle.vocabulary.items.take(near_1K[0].tolist())
        hits = [Hit(name, score, {}, "similar") for name, score in zip(ids, best_1K[0].tolist(), strict=True)]
        return Page(tuple(hits), len(cosine_I) - 1, short_notes(num_hits, k, len(cosine_I) - 1))


def _pages(snapshot: Snapshot, questions: Sequence[Any]) -> list[Page]:
    """Answers to the questions among some results."""
    asked = [question for question in questions if isinstance(question, Question)]
    return [page for few in _portions(asked) for page in answer(snapshot, few)]


def _portions(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Questions that are answered together; few of them where their exclusions are many."""
    few: list[Question] = []
    most = 0
    for question in questions:
        most = max(most, len(question.exclude_E))
        if few and (len(few) + 1) * most > MOST_EXCLUSIONS:
            yield few
            few, most = [], len(question.exclude_E)
        few.append(question)
    if few:
        yield few


def _request(fields: Any) -> Request:
    if not isinstance(fields, Mapping):
        raise InputError(f"a request must be a Request or a mapping of its fields, got {shown(fields)}")
    unknown = sorted(map(str, set(fields) - set(Request.__dataclass_fields__)))
    if unknown:
        raise InputError(
            f"a request has no field {shown(unknown[0])}; its fields are {list(Request.__dataclass_fields__)}"
        )
    return Request(**fields)
