"""The web application: FastAPI routes over an AsyncRecommender."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from examples.service import messages as m
from recsys import Event, Recommender
from recsys.errors import InputError, Overloaded, SourceUnavailable
from recsys.retrieval.async_recommender import AsyncRecommender

__all__ = ["Settings", "create_app"]

LOG = logging.getLogger("recsys.service")
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits of the service."""

    max_body_bytes: int = 2_000_000
    max_batch: int = 32
    max_delay_ms: float = 2.0
    max_queue: int = 256
    timeout_seconds: float = 2.0
    """Of one request, its time in the queue included."""
    admin_token: str | None = None
    """What ``/items`` asks for as a bearer token; None = anybody who reaches the port may change the catalogue."""


class Service:
    """What the routes share."""

    def __init__(self, recommender: Recommender, settings: Settings) -> None:
        self.recommender, self.settings = recommender, settings
        self.front: AsyncRecommender | None = None

    @property
    def ready(self) -> AsyncRecommender:
        """The front, once it takes requests."""
        if self.front is None:
            raise HTTPException(503, "the service is starting or stopping; ask again in a moment")
        return self.front

    def titles(self, ids: list[Any]) -> list[str | None]:
        """Title of each item, None where it has none or is not known."""
        bundle = self.recommender.bundle
        rows = bundle.vocabulary.items.index(ids)
        if "title" not in bundle.items.columns:
            return [None] * len(ids)
        column = bundle.items["title"]
        return [None if row < 0 or column[int(row)] is None else str(column[int(row)]) for row in rows]


def create_app(recommender: Recommender, settings: Settings | None = None) -> FastAPI:
    """The application.

    Args:
        recommender: loaded, with a source of histories that takes new events.
        settings: limits.
    """
    service = Service(recommender, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        limits = service.settings
        async with AsyncRecommender(
            recommender,
            max_batch=limits.max_batch,
            max_delay_ms=limits.max_delay_ms,
            max_queue=limits.max_queue,
        ) as front:
            service.front = front
            yield
            service.front = None

    app = FastAPI(
        title="recsys",
        version="1",
        lifespan=lifespan,
        responses={code: {"model": m.ErrorReply} for code in (400, 413, 422, 500, 503, 504)},
    )
    app.state.service = service
    _errors(app, service.settings)
    _routes(app, service)
    return app


def _errors(app: FastAPI, settings: Settings) -> None:
    def reply(status: int, kind: str, message: str, **headers: str) -> JSONResponse:
        return JSONResponse({"type": kind, "message": " ".join(message.split())}, status, headers=headers)

    @app.middleware("http")
    async def limit_body(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "")
        if request.method in ("POST", "PUT", "PATCH"):
            if not length.isdigit():
                return reply(411, "bad_request", "a body needs a Content-Length header")
            if int(length) > settings.max_body_bytes:
                return reply(
                    413, "too_large", f"a body may have {settings.max_body_bytes} bytes, this one has {length}"
                )
        return await call(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return reply(422, "bad_request", f"{where}: {first['msg']}")

    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return reply(400, "bad_request", str(error))

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> JSONResponse:
        return reply(503, "overloaded", str(error), **{"Retry-After": "1"})

    @app.exception_handler(SourceUnavailable)
    async def unavailable(_: Request, error: SourceUnavailable) -> JSONResponse:
        return reply(503, "unavailable", str(error), **{"Retry-After": "1"})

    @app.exception_handler(TimeoutError)
    async def late(_: Request, __: TimeoutError) -> JSONResponse:
        return reply(504, "timeout", f"there was no answer within {settings.timeout_seconds} s; ask again")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        kinds = {401: "unauthorized", 404: "not_found", 503: "unavailable"}
        return reply(
            error.status_code, kinds.get(error.status_code, "bad_request"), str(error.detail), **(error.headers or {})
        )

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> JSONResponse:
        LOG.error("unexpected %s", type(error).__name__, exc_info=error)
        return reply(500, "internal", "an error of the service itself; its log says more")


def _routes(app: FastAPI, service: Service) -> None:
    recommender, settings = service.recommender, service.settings

    def admin(authorization: Annotated[str | None, Header()] = None) -> None:
        wanted = settings.admin_token
        given = (authorization or "").removeprefix("Bearer ")
        if wanted is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise HTTPException(401, "changing the catalogue needs the admin token", {"WWW-Authenticate": "Bearer"})

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A page to look at one user."""
        return PAGE.read_text(encoding="utf-8")

    @app.get("/health")
    async def health() -> m.Status:
        """The process answers."""
        return m.Status(status="ok")

    @app.get("/ready")
    async def ready() -> m.Status:
        """Requests are taken."""
        assert service.ready
        return m.Status(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters and histograms in Prometheus' text format."""
        return service.metrics()

    @app.get("/about")
    async def about() -> m.About:
        """Actions, retrievers and some users of the bundle."""
        return m.About(
            actions=list(recommender.actions),
            retrievers=list(recommender.retrievers),
            num_items=len(recommender.items),
            user_ids=recommender.user_ids.head(50).to_list(),
            version=recommender.version,
        )

    @app.post("/recommend")
    async def recommend(body: m.RecommendMessage) -> m.PageReply:
        """The items to show to a user."""
        began = time.perf_counter()
        fields = {name: getattr(body, name) for name in body.model_fields_set}
        for name in ("history", "new_events"):
            if fields.get(name) is not None:
                fields[name] = [_event(event) for event in fields[name]]
        found = await service.ready.recommend(timeout=settings.timeout_seconds, **fields)
        titles = service.titles(found.item_ids)
        hits = [
            m.HitMessage(
                item_id=hit.item_id, title=title, score=hit.score, retriever=hit.retriever, actions=hit.actions
            )
            for hit, title in zip(found, titles, strict=True)
        ]
        milliseconds = 1000 * (time.perf_counter() - began)
        return m.PageReply(items=hits, notes=list(found.notes), version=found.version, milliseconds=milliseconds)

    @app.get("/similar")
    async def similar(
        item_id: Annotated[str, Query(min_length=1, max_length=256)],
        k: Annotated[int, Query(ge=1, le=m.MAX_K)] = 10,
    ) -> m.PageReply:
        """The items nearest to one; the id is compared as text."""
        began = time.perf_counter()
        found = await service.ready.similar_items(item_id, k)
        titles = service.titles(found.item_ids)
        hits = [
            m.HitMessage(item_id=hit.item_id, title=title, score=hit.score, retriever=hit.retriever, actions={})
            for hit, title in zip(found, titles, strict=True)
        ]
        milliseconds = 1000 * (time.perf_counter() - began)
        return m.PageReply(items=hits, notes=list(found.notes), version=recommender.version, milliseconds=milliseconds)

    @app.post("/events", status_code=201)
    async def events(body: m.EventsMessage) -> m.Accepted:
        """Keep what a user did; the next recommendation knows it."""
        now = int(time.time())
        kept = [_event(event, now) for event in body.events]
        await service.ready.append_events(body.user_id, kept)
        return m.Accepted(accepted=len(kept))

    @app.get("/events")
    async def stored(
        user_id: Annotated[str, Query(min_length=1, max_length=256)],
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> m.StoredEvents:
        """The newest events of a user."""
        events = await asyncio.to_thread(recommender.events_of, user_id)
        if events is None:
            raise HTTPException(404, f"user {user_id!r} has no events here")
        newest = list(reversed(events))[:limit]
        titles = service.titles([event.item_id for event in newest])
        rows = [
            m.StoredEvent(item_id=event.item_id, title=title, actions=_names(event), timestamp=event.timestamp)
            for event, title in zip(newest, titles, strict=True)
        ]
        return m.StoredEvents(user_id=user_id, events=rows, total=len(events))

    @app.post("/explain")
    async def explain(body: m.ExplainMessage) -> m.WhyReply:
        """Which events of the user speak for an item."""
        why = await asyncio.to_thread(recommender.explain, body.user_id, item=body.item_id)
        return service.why(body.item_id, why)

    @app.post("/items", dependencies=[Depends(admin)], responses={401: {"model": m.ErrorReply}})
    async def items(body: m.ItemsMessage) -> m.ItemsReply:
        """Add, change, withdraw or restore items."""
        frame = pl.DataFrame(body.items, infer_schema_length=None) if body.items else None
        await asyncio.to_thread(recommender.update_items, frame, withdraw=body.withdraw, restore=body.restore)
        return m.ItemsReply(version=recommender.version, num_items=len(recommender.items))


def _event(message: m.EventMessage, now: int | None = None) -> Event:
    return Event(
        item_id=message.item_id,
        actions=tuple(message.actions),
        timestamp=now if message.timestamp is None else message.timestamp,
        surface=message.surface,
    )


def _names(event: Event) -> list[str]:
    return event.actions.split("+") if isinstance(event.actions, str) else list(event.actions)
