"""The embedded recommender: a bundle in memory, answering requests from any thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from recsys.bundle import Bundle
from recsys.errors import Closed, InputError, SourceUnavailable, shown
from recsys.events import Event
from recsys.retrieval.answer import answer
from recsys.retrieval.explain import MAX_EVENTS, Explanation, explained
from recsys.retrieval.limits import Limits
from recsys.retrieval.live_catalogue import LiveCatalogue
from recsys.retrieval.page import Page
from recsys.retrieval.page_frame import page_frame, wanted_users
from recsys.retrieval.question import Question, own_user_id, questions_of, source_of
from recsys.retrieval.reordering import Reorders
from recsys.retrieval.request import Request
from recsys.retrieval.request_log import RequestLog
from recsys.retrieval.rules import Explore, Rule
from recsys.retrieval.similar import similar_items
from recsys.retrieval.snapshot import Snapshot, SourceChoice
from recsys.retrieval.timings import BatchTimings, Observer
from recsys.state_layout import Storage
from recsys.state_store import StoreCounts, UserStateStore

__all__ = ["Recommender"]

BATCH = 256
"""Requests encoded together; bounds the memory of :meth:`Recommender.recommend_batch`, not its results."""


MOST_EXCLUSIONS = 1 << 23
"""Places of the matrix of excluded items of requests answered together."""


class Recommender:
    """Recommends from a bundle. One instance serves all threads: what answers is replaced as a whole, never changed.

    What it made of a user's history is kept for the next request, which then pays for the new events alone; no answer
    depends on what is kept.

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
        states: UserStateStore | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Serve a loaded bundle.

        Args:
            bundle: what to serve.
            clock: gives the seconds since 1970 of requests that name no time.
            history_source: where the events of a ``user_id`` come from and :meth:`append_events` puts them; None = the
                bundle's histories, read-only. It stays the caller's to close.
            states: keeps the states of returning users, for the bundle's model; None = as :meth:`load` does.
            limits: of the size of a request; None = the default ones.
        """
        self._clock, self.limits = clock, limits or Limits()
        self._observers: tuple[Observer, ...] = (RequestLog(),)
        kept = _store(bundle) if states is None else states
        self._live = LiveCatalogue(Snapshot.of(bundle, history_source, kept))

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str = "cpu",
        *,
        history_source: SourceChoice = None,
        state_bytes: int | Literal["auto"] = "auto",
        state_storage: Storage = "float32",
        limits: Limits | None = None,
    ) -> Recommender:
        """Open a bundle folder.

        Args:
            path: the folder.
            device: ``cpu`` or ``cuda``.
            history_source: where the events of a ``user_id`` come from: a
                :class:`~recsys.retrieval.history_sources.source.HistorySource`, or ``over_bundle(source)`` for the
                bundle's histories continued by one; None = the bundle's histories.
            state_bytes: memory for states of returning users, who then pay for their new events only. ``auto`` = a
                quarter of what is free on the device, and of the host's for what has to leave a GPU; 0 = none.
            state_storage: ``int8`` keeps three to four times as many users, whose probabilities are then approximate.
            limits: of the size of a request; None = the default ones.

        Raises:
            InputError: a part of the bundle is missing, damaged or foreign, or the memory is not there; one line says
                which and what to do.
        """
        bundle = Bundle.open(path, device)
        states = _store(bundle, state_bytes, state_storage)
        return cls(bundle, history_source=history_source, states=states, limits=limits)

    def save(self, path: Path | str) -> None:
        """Write a bundle to another folder that loads as what answers now, changes of the catalogue included.

        Raises:
            InputError: the files that this recommender was loaded from are gone or changed.
        """
        self._live.save(path)

    def update_items(self, items: Any = None, *, withdraw: Iterable[Any] = (), restore: Iterable[Any] = ()) -> None:
        """Change the catalogue under way; all of it holds for every request that begins after the call returns.

        Items that the catalogue does not hold are new: they are known by their content until a model is trained with
        them. Known ones get other values. Items that are withdrawn are never returned by anything, and their events
        still count in histories. Requests under way are answered by what they began with.

        Args:
            items: a polars or pandas frame, or mappings, with ``item_id`` and columns of :attr:`items`; what a mapping
                leaves out, or a frame has no column of, stays as it is, and is unknown of a new item. New items need
                every vector column that the model reads. Where the bundle has semantic IDs, ``codes`` (or
                ``parallel_codes``, ``set_codes``) states those of new items; otherwise its codebooks make them.
            withdraw: ids of known items. restore: ids of withdrawn items that are to be returned again.

        Raises:
            InputError: an unknown column or id, an id twice, a value of another type; nothing has changed then.
        """
        self._live.update_items(items, withdraw, restore)

    def swap(self, bundle: Path | str | Bundle, *, keep_updates: bool = True) -> None:
        """Answer from another bundle. Going back is the same call with the old one.

        The bundle is loaded beside the present one, checked, and asked something before it takes over, so that there
        is memory needed for both. Requests under way end on the old one, which then goes.

        Args:
            bundle: a folder, or what was loaded from one.
            keep_updates: make the changes of :meth:`update_items` to it as well, by the callers' ids: withdrawn items
                stay withdrawn, new ones that it does not know are added, and values that were given replace its own.
                False = take it as it is.

        Raises:
            InputError: it cannot be loaded or cannot answer; the present one goes on.
        """
        self._live.swap(bundle, keep_updates)

    @property
    def _snapshot(self) -> Snapshot:
        return self._live.snapshot

    @property
    def withdrawn(self) -> list[Any]:
        """Ids of items that are never returned."""
        bundle = self.bundle
        return bundle.vocabulary.items.take(bundle.withdrawn_G)

    @property
    def bundle(self) -> Bundle:
        """What answers requests now."""
        return self._snapshot.bundle

    @property
    def version(self) -> str:
        """What :attr:`Page.version` says of an answer that begins now."""
        return self._snapshot.version

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

    @property
    def states(self) -> UserStateStore:
        """What is kept of returning users; ``states.forget(keys)`` drops it."""
        return self._snapshot.states

    @property
    def state_counts(self) -> StoreCounts:
        """What all requests so far found kept, appended and encoded."""
        return self._snapshot.states.counts

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
        reranker: Reorders | None = None,
        rerank_ms: float | None = None,
        cache_key: str | int | None = None,
    ) -> Page:
        """Retrieve and rank for one user; both read the same keys and values of one pass over the history.

        The page is in retrieval order with probabilities attached; with ``rank_by`` it is in their order; with
        ``reranker`` its first candidates are reordered before the rules choose among them. ``at`` sets
        the time of the request and does not cut the history: what counts is what the caller, or the bundle, says
        happened. Odd cases have plain answers: a user without events, or whom the bundle does not know, gets what the
        model says of an empty history; a page is shorter, or empty, where exclusions leave fewer than k items.
        :attr:`Page.notes` says so.

        Args:
            user_id, history, new_events, k, retrievers, exclude, allow, exclude_history, at, surface, rank, rank_by,
                candidates, user_features, rules, max_candidates, reranker, rerank_ms, cache_key: see
                :class:`recsys.retrieval.request.Request`.

        Raises:
            InputError: a request that cannot be meant (unknown retriever or action, k below 1, both user_id and
                history) or is larger than :attr:`limits`, or a user id where the bundle holds no histories.
            SourceUnavailable: the user's history cannot be read now.
        """
        request = Request(
            user_id=user_id, history=history, new_events=new_events, k=k, retrievers=retrievers, exclude=exclude,
            allow=allow, exclude_history=exclude_history, at=at, surface=surface, rank=rank, rank_by=rank_by,
            candidates=candidates, user_features=user_features, rules=rules, max_candidates=max_candidates,
            reranker=reranker, rerank_ms=rerank_ms, cache_key=cache_key,
        )  # fmt: skip
        return self.recommend_batch([request])[0]

    def recommend_batch(self, requests: Sequence[Request | Mapping[str, Any]]) -> list[Page]:
        """Answer many requests, each as :meth:`recommend` would, in fewer and larger passes.

        Args:
            requests: :class:`Request` objects, or mappings of the same fields.

        Raises:
            InputError, SourceUnavailable: of the first request that :meth:`recommend` would refuse.
        """
        return self._pages(self._snapshot, requests, keep_states=True)

    def _pages(
        self, snapshot: Snapshot, requests: Sequence[Request | Mapping[str, Any]], *, keep_states: bool
    ) -> list[Page]:
        full = [request if isinstance(request, Request) else _request(request) for request in requests]
        pages = list[Page]()
        for begin in range(0, len(full), BATCH):
            part = full[begin : begin + BATCH]
            pages += self._answered(snapshot, part, together=True, keep_states=keep_states)
        return pages

    def recommend_each(self, requests: Sequence[Request]) -> list[Page | InputError | SourceUnavailable | Closed]:
        """As :meth:`recommend_batch`, for requests of different people: one that is refused has its error in its place.

        Args:
            requests: checked one by one where they were made.
        """
        snapshot, results = self._snapshot, list[Any]()
        for begin in range(0, len(requests), BATCH):
            results += self._answered(snapshot, requests[begin : begin + BATCH], together=False)
        return results

    def _answered(
        self, snapshot: Snapshot, requests: Sequence[Request], *, together: bool, keep_states: bool = True
    ) -> list[Any]:
        """Pages, errors in the places of requests that are refused; ``together``: the first of these is raised."""
        timings, pages = BatchTimings(requests), list[Page]()
        try:
            with timings.stage("history"):
                questions = questions_of(snapshot, requests, self._clock(), self.limits, keep_states=keep_states)
            refused = [question for question in questions if not isinstance(question, Question)]
            if refused and together:
                raise refused[0]
            for few in _portions([question for question in questions if isinstance(question, Question)]):
                if pages:
                    timings = BatchTimings(few)
                timings.keep([question.request for question in few])
                pages += answer(snapshot, few, timings)
                for observer in self._observers:
                    observer.answered(timings)
        except Exception as error:
            self._tell_of_failure(timings, error)
            raise
        for refusal in refused:
            self._tell_of_failure(BatchTimings([None]), refusal)
        answers = iter(pages)
        return [next(answers) if isinstance(question, Question) else question for question in questions]

    def _tell_of_failure(self, timings: BatchTimings, error: Exception) -> None:
        timings.finish()
        for observer in self._observers:
            observer.failed(timings, error)

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

    def events_of(self, user_id: Any) -> list[Event] | None:
        """All events of a user as the source of histories holds them, oldest first; None for an unknown user.

        Raises:
            InputError: an id that cannot be meant, or the bundle holds no histories.
            SourceUnavailable: the source cannot be read now.
        """
        snapshot = self._snapshot
        (events,) = source_of(snapshot).events([own_user_id(snapshot, user_id)])
        return events

    def observe(self, *observers: Observer) -> None:
        """Tell others of every batch, instead of the log that a new recommender tells of slow ones: a
        :class:`~recsys.retrieval.request_log.RequestLog`,
        :class:`~recsys.retrieval.metrics_export.PrometheusMetrics`, :class:`~recsys.retrieval.tracing.RequestSpans`
        or one of your own; none = nobody."""
        self._observers = observers

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
        snapshot, pages = self._snapshot, list[Page]()
        wanted = wanted_users(snapshot, users)
        for begin in range(0, len(wanted), BATCH):
            asked = [{**settings, "user_id": user, "k": k} for user in wanted[begin : begin + BATCH]]
            # Each user once: keeping their states would cost time and turn out those of users who do return.
            pages += self._pages(snapshot, asked, keep_states=False)
        explores = any(isinstance(rule, Explore) for rule in settings.get("rules", ()))
        return page_frame(snapshot, wanted, pages, ranked=settings.get("rank", True), explores=explores)

    def explain(
        self,
        user_id: Any = None,
        item_id: Any = None,
        *,
        history: Sequence[Event] | None = None,
        new_events: Sequence[Event] = (),
        retriever: str = "dense",
        at: int | None = None,
        surface: str | None = None,
        user_features: Mapping[str, Any] | None = None,
        max_events: int = MAX_EVENTS,
        attention: bool = False,
    ) -> Explanation:
        """How the score of one item would change without each event of the history, exactly.

        Events of the window are left out one by one, the newest first, and the rest encoded anew as
        :meth:`recommend` would; the request keeps its time and surface. It costs one encoding per event.

        Args:
            item_id: any item of the catalogue, recommended or not.
            retriever: whose score, also as :attr:`Hit.retriever` names it; the probabilities are those of the ranking
                head.
            max_events: most events to leave out.
            attention: keep the attention weights too, as a picture.
            user_id, history, new_events, at, surface, user_features: see
                :class:`recsys.retrieval.request.Request`.

        Raises:
            InputError: as :meth:`recommend`; and the catalogue does not hold the item.
        """
        snapshot = self._snapshot
        if isinstance(retriever, str) and retriever not in snapshot.retrievers:
            retriever = retriever.partition("/")[0]  # hybrid/dense: hybrid, whose part dense found the item
        request = Request(
            user_id=user_id, history=history, new_events=new_events, retrievers=(retriever,), at=at, surface=surface,
            user_features=user_features,
        )  # fmt: skip
        (question,) = questions_of(snapshot, [request], self._clock(), self.limits)
        if not isinstance(question, Question):
            raise question
        return explained(snapshot, question, item_id, max_events=max_events, attention=attention)

    def similar_items(self, item_id: Any, k: int = 10) -> Page:
        """The items nearest to one, by cosine of item vectors; equal ones by place in the catalogue. The one may be
        withdrawn.

        Raises:
            InputError: the catalogue does not hold the item.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k must be a positive integer, got {shown(k)}")
        if k > self.limits.k:
            raise InputError(f"k {shown(k)}, more than the {self.limits.k:,} that are answered (Limits.k)")
        return similar_items(self._snapshot, item_id, k)


def _store(
    bundle: Bundle, state_bytes: int | Literal["auto"] = "auto", state_storage: Storage = "float32"
) -> UserStateStore:
    if state_bytes != "auto" and (isinstance(state_bytes, bool) or not isinstance(state_bytes, int) or state_bytes < 0):
        raise InputError(f"state_bytes must be 'auto' or a number of bytes, 0 for none, got {state_bytes!r}")
    max_bytes = None if state_bytes == "auto" else state_bytes
    host_bytes = 0 if state_bytes == 0 else None
    return UserStateStore(
        bundle.model, model_hash=bundle.model_hash, max_bytes=max_bytes, host_bytes=host_bytes,
        storage=state_storage,
    )  # fmt: skip


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
