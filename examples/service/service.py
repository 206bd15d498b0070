"""What the routes share: the recommender, its asynchronous front, and replies made of their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import Gauge, Histogram
from starlette.exceptions import HTTPException

from examples.service import messages as m
from recsys import Event, Recommender
from recsys.errors import Overloaded
from recsys.retrieval.async_recommender import AsyncRecommender
from recsys.retrieval.explain import Explanation
from recsys.retrieval.metrics_export import PrometheusMetrics
from recsys.retrieval.page import Page
from recsys.retrieval.request_log import RequestLog

__all__ = ["Service", "Settings", "event_of", "names_of"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of the service.

    Args:
        max_body_bytes: largest body of a request.
        max_requests: requests with a body that may be under way together.
        max_batch: requests computed together.
        max_delay_ms: how long an idle worker waits for company while another one computes.
        max_queue: recommendations that may wait.
        max_slow: explanations and changes of the catalogue under way together; one at a time is computed.
        timeout_seconds: for one answer, its time in the queue included.
        slow_timeout_seconds: likewise for an explanation; a change of the catalogue takes the time that it takes.
        admin_token: what `/items` asks for as a bearer token; null = anybody who reaches the port may change the
            catalogue. The environment variable RECSYS_ADMIN_TOKEN keeps it out of the list of processes.
    """

    max_body_bytes: int = 2_000_000
    max_requests: int = 512
    max_batch: int = 32
    max_delay_ms: float = 2.0
    max_queue: int = 256
    max_slow: int = 16
    timeout_seconds: float = 2.0
    slow_timeout_seconds: float = 10.0
    admin_token: str | None = None


class Service:
    """One recommender behind one event loop."""

    def __init__(self, recommender: Recommender, settings: Settings) -> None:
        """Prepare; the application starts the front.

        Raises:
            InputError: ``prometheus-client`` is not installed.
        """
        self.recommender, self.settings = recommender, settings
        self.front: AsyncRecommender | None = None
        self.metrics = PrometheusMetrics()
        self.metrics.cache_bytes("all", lambda: recommender.states.used_bytes)
        waiting = Gauge("service_waiting_requests", "Requests in the queue", registry=self.metrics.registry)
        waiting.set_function(lambda: 0 if self.front is None else self.front.num_waiting)
        self.queue_seconds = Histogram(
            "service_queue_seconds", "Time of a recommendation in the queue", registry=self.metrics.registry
        )
        recommender.observe(RequestLog(), self.metrics)
        self._slow, self._num_slow = asyncio.Lock(), 0

    @property
    def ready(self) -> AsyncRecommender:
        """The front, while it takes requests."""
        if self.front is None:
            raise HTTPException(503, "the service is starting or stopping", {"Retry-After": "1"})
        return self.front

    async def soon(self, call: Callable[[], T]) -> T:
        """Run what is answered within the time for one answer, or not at all."""
        return await self.ready.beside(call, timeout=self.settings.timeout_seconds)

    async def slowly(self, call: Callable[[], T], timeout: float | None = None) -> T:
        """Run what may take long, one call at a time, so that threads are left for events.

        Args:
            call: without arguments.
            timeout: seconds, those before its turn included. A call that has begun keeps its turn until it ends.
        """
        if self._num_slow >= self.settings.max_slow:
            raise Overloaded(f"{self._num_slow} slow calls wait already; try again later")
        self._num_slow += 1
        begun = asyncio.Event()

        async def in_turn() -> T:
            async with self._slow:
                begun.set()
                return await self.ready.beside(call)

        turn = asyncio.create_task(in_turn())
        turn.add_done_callback(self._slow_done)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await asyncio.shield(turn)
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"no answer within {timeout:g} s") from error
            raise
        finally:
            if not begun.is_set():
                turn.cancel()

    def _slow_done(self, turn: asyncio.Task[Any]) -> None:
        self._num_slow -= 1
        if not turn.cancelled():
            turn.exception()  # seen, even if its caller has left

    def check_item(self, item_id: Any) -> None:
        """Answer 404 for an item that the catalogue does not hold."""
        if self.recommender.bundle.vocabulary.items.index([item_id])[0] < 0:
            raise HTTPException(404, f"item {item_id!r} is not in the catalogue")

    def titles(self, ids: list[Any]) -> list[str | None]:
        """Title of each item, None where it has none or is not known."""
        bundle = self.recommender.bundle
        if "title" not in bundle.items.columns:
            return [None] * len(ids)
        column = bundle.items["title"]
        rows = bundle.vocabulary.items.index(ids).tolist()
        return [None if row < 0 or column[row] is None else str(column[row]) for row in rows]

    def page(self, page: Page, began: float) -> m.PageReply:
        """A page as it goes over the wire; ``began`` is a reading of ``time.perf_counter``."""
        hits = [
            m.HitMessage(
                item_id=hit.item_id,
                title=title,
                score=hit.score,
                retriever=hit.retriever,
                actions=hit.actions,
                propensity=hit.propensity,
            )
            for hit, title in zip(page, self.titles(page.item_ids), strict=True)
        ]
        milliseconds = 1000 * (time.perf_counter() - began)
        return m.PageReply(items=hits, notes=list(page.notes), version=page.version, milliseconds=milliseconds)

    def stored(self, user_id: Any, events: list[Event], limit: int) -> m.StoredEvents:
        """The newest events of a user."""
        newest = events[::-1][:limit]
        rows = [
            m.StoredEvent(item_id=event.item_id, title=title, actions=names_of(event), timestamp=event.timestamp)
            for event, title in zip(newest, self.titles([event.item_id for event in newest]), strict=True)
        ]
        return m.StoredEvents(user_id=user_id, events=rows, total=len(events))

    def why(self, why: Explanation) -> m.WhyReply:
        """An explanation as it goes over the wire."""
        reasons = [
            m.Reason(
                item_id=effect.item_id,
                title=title,
                actions=list(effect.actions),
                timestamp=effect.timestamp,
                change=effect.score_change,
                action_changes=effect.action_changes,
                memory=[reason.relation for reason in effect.memory],
            )
            for effect, title in zip(why.effects, self.titles([effect.item_id for effect in why.effects]), strict=True)
        ]
        return m.WhyReply(item_id=why.item_id, score=why.score, actions=why.actions, reasons=reasons)


def event_of(message: m.EventMessage) -> Event:
    """An event from the wire."""
    return Event(
        item_id=message.item_id,
        actions=tuple(message.actions),
        timestamp=message.timestamp,
        surface=message.surface,
    )


def names_of(event: Event) -> list[str]:
    """The actions of an event."""
    return [name for name in event.actions.split("+") if name] if isinstance(event.actions, str) else [*event.actions]
