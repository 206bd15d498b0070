"""One error model for everything that is not answered, and the gate in front of the routes."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.service.messages import ErrorReply
from recsys.errors import Closed, InputError, Overloaded, SourceUnavailable

__all__ = ["Gate", "documented", "handle_errors"]

KINDS = {
    400: ("bad_request", "The request cannot be meant, such as an action that the data never had."),
    401: ("unauthorized", "The admin token is missing or wrong."),
    404: ("not_found", "There is no such user, item or path."),
    405: ("not_allowed", "The path does not know the method."),
    411: ("length_required", "A body comes with its Content-Length."),
    413: ("too_large", "The body is too large."),
    422: ("invalid", "A field has another type, or is beyond its limits."),
    500: ("internal", "An error of the service itself; its log says more."),
    503: ("overloaded", "Too many requests wait, or the histories cannot be read now; try again, or elsewhere."),
    504: ("timeout", "There was no answer in time."),
}

_FOLDERS = re.compile(r"""(?<![\w/'"])/(?:[^\s/:'"]+/)+""")
"""Of an absolute path outside quotation marks, in which messages quote ids."""


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: the error replies of a route."""
    return {status: {"model": ErrorReply, "description": KINDS[status][1]} for status in statuses}


def reply(status: int, message: str, kind: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error reply; the message may quote what a stranger sent, and names files without their folders."""
    line = " ".join(_FOLDERS.sub("", message.encode("utf-8", "backslashreplace").decode()).split())[:500]
    body = {"type": kind or KINDS.get(status, KINDS[400])[0], "message": line}
    return JSONResponse(body, status, headers=headers)


def handle_errors(app: FastAPI) -> None:
    """Turn whatever a route raises into an error reply."""
    again = {"Retry-After": "1"}

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[:3]
        told = [f"{'.'.join(str(part)[:100] for part in one['loc'])}: {one['msg']}" for one in found]
        return reply(400 if found[0]["type"] == "json_invalid" else 422, "; ".join(told))

    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return reply(400, str(error))

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> JSONResponse:
        return reply(503, str(error), headers=again)

    @app.exception_handler(SourceUnavailable)
    @app.exception_handler(Closed)
    async def unavailable(_: Request, error: Exception) -> JSONResponse:
        return reply(503, str(error), "unavailable", again)

    @app.exception_handler(TimeoutError)
    async def late(_: Request, error: TimeoutError) -> JSONResponse:
        return reply(504, str(error) or "no answer in time")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of the first route of a path alone
            routes = [route for route in app.routes if isinstance(route, Route) and route.path == request.url.path]
            headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods or ()}))
        return reply(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    async def internal(_: Request, __: Exception) -> JSONResponse:
        return reply(500, KINDS[500][1])  # the server logs the traceback


class Gate:
    """Counts replies, and turns away what is too much before any of its body is read."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_requests: int, registry: CollectorRegistry) -> None:
        """Stand before an application.

        Args:
            app: what answers.
            max_body_bytes: largest body.
            max_requests: requests with a body that may be under way together.
            registry: gets the counter ``service_replies_total``.
        """
        self.app, self.max_body_bytes, self.max_requests = app, max_body_bytes, max_requests
        self.num_bodies = 0
        self.replies = Counter("service_replies", "HTTP replies", ["route", "status"], registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self.replies.labels(route, str(message["status"])).inc()
            await send(message)

        if scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, counted)
        elif (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, counted)
        else:
            self.num_bodies += 1
            try:
                await self.app(scope, receive, counted)
            finally:
                self.num_bodies -= 1

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        close = {"Connection": "close"}  # whatever of the body is on its way is not read
        if self.num_bodies >= self.max_requests:
            return reply(503, f"{self.num_bodies} requests are under way already", headers=close | {"Retry-After": "1"})
        if scope["method"] in ("POST", "PUT", "PATCH") and not (length.isascii() and length.isdigit()):
            return reply(411, "a body needs a Content-Length header", headers=close)
        if length.isdigit() and int(length) > self.max_body_bytes:
            return reply(413, f"a body may have {self.max_body_bytes:,} bytes, this one has {length}", headers=close)
        return None
