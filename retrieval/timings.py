"""How long the stages of requests took, and what they found.

Requests that are answered together share their stages. So a stage has two times: the wall time of the whole batch,
which every one of its requests waited for, and a request's share of it, the wall time divided by the requests that took
part: shares add up over requests, waiting times do not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from recsys.state_store import StoreCounts

__all__ = ["BatchTimings", "Observer"]


class Observer(Protocol):
    """Told of every batch after it was answered, in the thread of its caller; it must not raise."""

    def answered(self, batch: BatchTimings) -> None: ...

    def failed(self, batch: BatchTimings, error: Exception) -> None:
        """An error ended the batch; its last stage is the one it happened in."""
        ...


class Stage:
    """One stage while it runs, and what is known of it after."""

    __slots__ = ("begin_s", "end_s", "name", "rows")

    def __init__(self, name: str, rows: Sequence[int] | None) -> None:
        self.name, self.rows = name, rows
        """Requests that take part; None = all."""
        self.begin_s = time.perf_counter()
        self.end_s: float | None = None

    @property
    def seconds(self) -> float:
        """0 while it runs."""
        return 0.0 if self.end_s is None else self.end_s - self.begin_s

    def end(self) -> None:
        self.end_s = time.perf_counter()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class BatchTimings:
    """Stages and counts of requests that are answered together.

    Stages: ``history`` (requests to internal numbers, their events read), ``encode``, ``search/NAME`` for every
    retriever, ``rank``, ``rerank``, ``rules`` (the order and what is left out of it) and ``page``.
    """

    __slots__ = ("began_ns", "begin_s", "counts", "end_s", "request_counts", "requests", "size", "stages")

    def __init__(self, requests: Sequence[Any]) -> None:
        """Start the clock for some requests."""
        self.requests, self.size = requests, len(requests)
        self.stages: list[Stage] = []
        self.counts: dict[str, int] = {}
        """Of the whole batch."""
        self.request_counts: list[dict[str, int]] = [{} for _ in requests]
        """Of every request."""
        self.began_ns = time.time_ns()
        """Wall clock, for spans and logs; times of stages come from a clock that never goes back."""
        self.begin_s = self.end_s = time.perf_counter()

    def keep(self, requests: Sequence[Any]) -> None:
        """Go on with some requests; the others were refused."""
        self.requests, self.size = requests, len(requests)
        self.request_counts = [{} for _ in requests]

    def stage(self, name: str, rows: Sequence[int] | None = None) -> Stage:
        """Begin a stage, which ends with its :meth:`Stage.end` or a ``with``; several of one name add up.

        Args:
            rows: requests of the batch that take part; None = all.
        """
        stage = Stage(name, rows)
        self.stages.append(stage)
        return stage

    def states(self, counts: StoreCounts) -> None:
        """Take over what a store of user states counted."""
        self.counts |= {
            "cache_hits": counts.hits + counts.appended,
            "states_appended": counts.appended,
            "states_encoded": counts.encoded,
            "tokens_encoded": counts.tokens_encoded,
            "tokens_reused": counts.tokens_reused,
        }

    def finish(self) -> None:
        """Stop the clock, and the stage that an error broke off."""
        self.end_s = time.perf_counter()
        for stage in self.stages:
            if stage.end_s is None:
                stage.end_s = self.end_s

    @property
    def seconds(self) -> float:
        """From the first look at the requests to the last page."""
        return self.end_s - self.begin_s

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Wall time of the batch in every stage."""
        found: dict[str, float] = {}
        for stage in self.stages:
            found[stage.name] = found.get(stage.name, 0.0) + stage.seconds
        return found

    def of(self, row: int) -> dict[str, Any]:
        """What one request of the finished batch is told.

        Returns:
            ``batch_size``; ``batch_ms`` wall time of every stage, and ``total``, which all requests of the batch waited
            for; ``share_ms`` the request's share of each; ``counts`` of the request (``history_events``,
            ``candidates``, ``rerank_…`` of a reranker); ``batch_counts`` of all of them together
            (``tokens_encoded``, ``tokens_reused``, ``cache_hits``, ``states_encoded``, ``states_appended``).
        """
        share: dict[str, float] = {}
        for stage in self.stages:
            if stage.rows is None:
                part = stage.seconds / self.size
            elif row in stage.rows:
                part = stage.seconds / len(stage.rows)
            else:
                continue
            share[stage.name] = share.get(stage.name, 0.0) + 1e3 * part
        batch = {name: 1e3 * seconds for name, seconds in self.stage_seconds.items()}
        return {
            "batch_size": self.size,
            "batch_ms": batch | {"total": 1e3 * self.seconds},
            "share_ms": share | {"total": 1e3 * self.seconds / self.size},
            "counts": self.request_counts[row],
            "batch_counts": dict(self.counts),
        }
