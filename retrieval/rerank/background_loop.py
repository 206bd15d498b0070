"""One event loop in a thread of its own, for callers that are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, TypeVar

__all__ = ["run", "start"]

T = TypeVar("T")


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="recsys-rerank", daemon=True).start()
    return loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, computed in the background loop while this thread waits.

    All calls share the loop, so that connections to a server are kept from one to the next.

    Raises:
        RuntimeError: work of this loop calls it, which would wait for itself and hold up everyone else's for good.
    """
    if asyncio._get_running_loop() is _loop():
        work.close()
        raise RuntimeError("this waits for the loop that it runs in; await the asynchronous method instead")
    return start(work).result()


def start(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Begin a coroutine in the background loop; its result is to be waited for, or it is to be cancelled."""
    return asyncio.run_coroutine_threadsafe(work, _loop())
