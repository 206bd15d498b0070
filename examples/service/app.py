"""The web application: FastAPI routes over an AsyncRecommender."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from examples.service import messages as m
from examples.service.replies import Gate, documented, handle_errors
from examples.service.service import Service, Settings, event_of
from recsys import Recommender
from recsys.pipelines.rule_file import rule_of
from recsys.retrieval.async_recommender import AsyncRecommender

__all__ = ["create_app"]

PAGE = Path(__file__).with_name("page.html")
BODY = documented(400, 411, 413, 422, 500, 503)
"""What a route with a body may answer."""
IdText = Annotated[str, Query(min_length=1, max_length=256)]
"""An id in an address, brought to the type of the data's."""


def create_app(recommender: Recommender, settings: Settings | None = None) -> FastAPI:
    """The application.

    Args:
        recommender: loaded, with a source of histories that takes new events.
        settings: limits.
    """
    service = Service(recommender, settings or Settings())
    limits = service.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncRecommender(
            recommender,
            max_batch=limits.max_batch,
            max_delay_ms=limits.max_delay_ms,
            max_queue=limits.max_queue,
        ) as service.front:
            yield
        service.front = None

    # The usual pages about an API load scripts from elsewhere; the document itself is at /openapi.json.
    app = FastAPI(title="recsys", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(
        Gate,
        max_body_bytes=limits.max_body_bytes,
        max_requests=limits.max_requests,
        registry=service.metrics.registry,
    )
    handle_errors(app)
    _operations(app, service)
    _reading(app, service)
    _writing(app, service)
    return app


def _operations(app: FastAPI, service: Service) -> None:
    recommender = service.recommender

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        """A page to look at one user."""
        return PAGE.read_text(encoding="utf-8")

    @app.get("/health", responses=documented(500))
    async def health() -> m.Status:
        """The process answers."""
        return m.Status()

    @app.get("/ready", responses=documented(500, 503, 504))
    async def ready() -> m.Status:
        """Requests are taken, and histories can be read."""
        await service.soon(lambda: recommender.events_of("somebody"))
        return m.Status()

    @app.get("/metrics", response_class=PlainTextResponse, responses=documented(500))
    async def metrics() -> str:
        """Counters and histograms in Prometheus' text format."""
        return service.metrics.text().decode()

    @app.get("/about", responses=documented(500))
    async def about() -> m.About:
        """Actions, retrievers, columns and some users."""
        bundle = recommender.bundle
        return m.About(
            actions=list(bundle.vocabulary.actions),
            retrievers=list(recommender.retrievers),
            columns=bundle.items.columns,
            num_items=len(bundle.items),
            user_ids=recommender.user_ids.head(50).to_list(),
            version=recommender.version,
        )


def _reading(app: FastAPI, service: Service) -> None:
    recommender = service.recommender

    @app.post("/recommend", responses=BODY | documented(504))
    async def recommend(body: m.RecommendMessage) -> m.PageReply:
        """The items to show to a user."""
        began = time.perf_counter()
        fields: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
        for name in ("history", "new_events"):
            if fields.get(name) is not None:
                fields[name] = [event_of(event) for event in fields[name]]
        if body.rules:
            fields["max_candidates"] = m.MAX_CANDIDATES
            fields["rules"] = [rule_of(rule) for rule in body.rules]
        found = await service.ready.recommend(timeout=service.settings.timeout_seconds, **fields)
        service.queue_seconds.observe(found.timings["queue_ms"] / 1000)
        return service.page(found, began)

    @app.get("/similar", responses=documented(400, 404, 422, 500, 503, 504))
    async def similar(item_id: IdText, k: Annotated[int, Query(ge=1, le=m.MAX_K)] = 10) -> m.PageReply:
        """The items nearest to one."""
        began = time.perf_counter()
        service.check_item(item_id)
        return service.page(await service.soon(lambda: recommender.similar_items(item_id, k)), began)

    @app.post("/explain", responses=BODY | documented(404, 504))
    async def explain(body: m.ExplainMessage) -> m.WhyReply:
        """Which events of the user speak for an item, and which against it."""
        service.check_item(body.item_id)
        why = await service.slowly(
            lambda: recommender.explain(
                body.user_id, body.item_id, retriever=body.retriever, max_events=body.max_events
            ),
            service.settings.slow_timeout_seconds,
        )
        return service.why(why)

    @app.get("/events", responses=documented(400, 404, 422, 500, 503, 504))
    async def stored(user_id: IdText, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> m.StoredEvents:
        """The newest events of a user."""
        events = await service.soon(lambda: recommender.events_of(user_id))
        if events is None:
            raise HTTPException(404, f"user {user_id!r} has no events here")
        return service.stored(user_id, events, limit)


def _writing(app: FastAPI, service: Service) -> None:
    recommender, token = service.recommender, service.settings.admin_token

    def admin(authorization: Annotated[str | None, Header()] = None) -> None:
        given = (authorization or "").removeprefix("Bearer ")
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "changing the catalogue needs the admin token", {"WWW-Authenticate": "Bearer"})

    @app.post("/events", status_code=201, responses=BODY | documented(504))
    async def events(body: m.EventsMessage) -> m.Accepted:
        """Keep what a user did; the reply says that it is on the disk, and the next recommendation knows it. After a
        504 they may or may not be kept; events that carry their time can be sent again."""
        kept = [event_of(event) for event in body.events]
        await service.ready.append_events(body.user_id, kept, timeout=service.settings.timeout_seconds)
        return m.Accepted(accepted=len(body.events))

    @app.post("/items", dependencies=[Depends(admin)], responses=BODY | documented(401))
    async def items(body: m.ItemsMessage) -> m.ItemsReply:
        """Add, change, withdraw or restore items."""
        await service.slowly(
            lambda: recommender.update_items(body.items or None, withdraw=body.withdraw, restore=body.restore)
        )
        bundle = recommender.bundle
        return m.ItemsReply(
            version=recommender.version, num_items=len(bundle.items), num_withdrawn=len(bundle.withdrawn_G)
        )
