"""One client of an OpenAI-compatible server for every event loop, closed with the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from recsys.errors import InputError, shown

__all__ = ["AnswerRefused", "Connection", "Connections", "refuse_password"]

_MOST_BYTES = 1 << 24
"""Of an answer; a longer one is cut off and refused."""


class AnswerRefused(Exception):
    """A server sent what is not read; the message says what."""


class Connection:
    """A client and the bound on its requests, within one event loop."""

    def __init__(self, client: Any, max_concurrency: int) -> None:
        self.client = client
        self.room = asyncio.Semaphore(max_concurrency)
        self._life: AsyncGenerator[None, None] | None = None

    async def open(self) -> None:
        """Have the client closed when the loop ends: asyncio closes asynchronous generators then."""
        self._life = self._alive()
        await anext(self._life)

    async def close(self) -> None:
        """Close the client now."""
        if self._life is not None:
            await self._life.aclose()

    async def _alive(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.client.close()


class Connections:
    """Makes a client where an event loop has none yet."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        max_retries: int,
        max_concurrency: int,
        on_retry: Callable[[], None],
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise InputError(
                f"language models of servers need the client openai ({error}); pip install 'recsys[llm]'"
            ) from None
        self._openai = openai
        self._base_url, self._api_key = base_url, api_key
        self._timeout_s, self._max_retries, self._max_concurrency = timeout_s, max_retries, max_concurrency
        self._on_retry = on_retry
        self._of_loop: dict[asyncio.AbstractEventLoop, Connection] = {}
        self._lock = threading.Lock()

    async def here(self) -> Connection:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            connection = self._of_loop.get(loop)
            if connection is not None:
                return connection
            for ended in [other for other in self._of_loop if other.is_closed()]:
                del self._of_loop[ended]
            connection = self._of_loop[loop] = Connection(self._client(), self._max_concurrency)
        await connection.open()
        return connection

    async def close(self) -> None:
        """Close that of the running loop; the next request opens another."""
        with self._lock:
            connection = self._of_loop.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.close()

    def _client(self) -> Any:
        http = self._openai.DefaultAsyncHttpxClient(
            timeout=self._timeout_s,
            headers={"accept-encoding": "identity"},
            event_hooks={"request": [self._count_retry], "response": [self._bound]},
        )
        return self._openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key or "none",  # not the one of the environment: it is another server's
            organization="",
            project="",
            timeout=self._timeout_s,
            max_retries=self._max_retries,
            http_client=http,
        )

    async def _count_retry(self, request: Any) -> None:
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            self._on_retry()

    async def _bound(self, response: Any) -> None:
        # A few compressed bytes can be any number of others, so that no bound on what arrives bounds what is read.
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise AnswerRefused(f"a compressed answer ({shown(encoding)}), which was not asked for")
        response.stream = _bounded(response.stream)


def refuse_password(address: str) -> None:
    """Whether an address can stand in messages and results.

    Raises:
        InputError: it names a user or a password.
    """
    if "@" in address.partition("://")[2].partition("/")[0].partition("#")[0]:
        raise InputError(
            "the address of a server names a user or a password, which messages and results would show; leave it out "
            "and give a key (of commands: in RECSYS_API_KEY)"
        )


def _bounded(stream: Any) -> Any:
    """The stream of a response, given up where it does not end."""
    # The client's HTTP library is httpx or its successor, by version: take the class from the object.
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "AsyncByteStream")

    class Bounded(base):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = _MOST_BYTES
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    raise AnswerRefused("an answer without end")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
