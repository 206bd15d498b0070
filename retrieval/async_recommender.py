"""The asyncio front: concurrent requests share passes of the model, within bounds on waiting and on memory."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from recsys.errors import Closed, InputError, Overloaded, shown
from recsys.events import Event
from recsys.retrieval.page import Page
from recsys.retrieval.request import Request

__all__ = ["AsyncCounts", "AsyncRecommender", "Recommends"]

T = TypeVar("T")


class Recommends(Protocol):
    """What of a recommender this front needs."""

    def recommend_each(self, requests: Sequence[Request]) -> Sequence[Page | Exception]: ...

    def similar_items(self, item_id: Any, k: int = 10) -> Page: ...

    def append_events(self, user_id: Any, events: Sequence[Event]) -> None: ...


@dataclass(slots=True)
class AsyncCounts:
    """What has happened since the start. Every request ends in exactly one of the last five."""

    requests: int = 0
    batches: int = 0
    largest_batch: int = 0
    answered: int = 0
    failed: int = 0
    """Requests that ended with their own error."""
    overloaded: int = 0
    timed_out: int = 0
    cancelled: int = 0
    """By their caller, or because the front was closed without draining."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request that waits for its page."""

    request: Request
    page: asyncio.Future[Page]
    since: float
    """Seconds of the monotonic clock."""
    begun: float = 0.0
    """Likewise, when its computation began."""


class AsyncRecommender:
    """Answers concurrent ``await recommend(…)`` calls of one event loop in batches, computed in worker threads.

    An idle front takes a request at once. While a batch is being computed, requests wait in order of arrival and
    become the next batch, at most ``max_batch``. Another idle worker joins in when a batch is full, or its first
    request has waited for ``max_delay_ms``. So batches form by themselves under load, and nobody waits for company
    while nothing is under way.

    At most ``max_queue`` requests wait; one more gets :class:`~recsys.errors.Overloaded` at once, so that a caller can
    turn to another instance while its own caller still listens. A request that was cancelled, or whose time is up,
    leaves the queue at once and costs no computation. A request that is refused gets its own error and its neighbours
    their pages; should a whole batch fail, its requests are tried one by one.

    Requests with a reranker form batches of their own, computed by as many threads more, and wait in a queue of the
    same size: a language model takes longer than all the rest, and who does not ask for it does not wait for it.

    Example:
        >>> async def serve():
        ...     async with AsyncRecommender(Recommender.load("bundle/")) as front:
        ...         return await front.recommend("u7", k=20, timeout=0.2)
    """

    def __init__(
        self,
        recommender: Recommends,
        *,
        max_batch: int = 32,
        max_delay_ms: float = 5.0,
        max_queue: int = 512,
        num_threads: int = 1,
    ) -> None:
        """Prepare; ``async with`` starts.

        Args:
            recommender: threads may share it, so several fronts may too.
            max_batch: requests computed together at most.
            max_delay_ms: how long an idle worker lets a batch grow while another one computes.
            max_queue: requests that wait at most, those in computation not counted; likewise for the other calls.
            num_threads: batches computed at the same time. One is best on a GPU and wherever torch uses all cores.

        Raises:
            InputError: a number below 1 (``max_delay_ms``: below 0).
        """
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue), ("num_threads", num_threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {value!r}")
        if isinstance(max_delay_ms, bool) or not 0 <= max_delay_ms < float("inf"):
            raise InputError(f"max_delay_ms must be a number of milliseconds, got {max_delay_ms!r}")
        self.recommender = recommender
        self.max_batch, self.max_queue, self.num_threads = max_batch, max_queue, num_threads
        self.max_delay_ms = max_delay_ms
        self.counts = AsyncCounts()
        # What follows changes on the event loop's thread only; workers see lists of requests and return results.
        self._waiting: OrderedDict[int, _Waiter] = OrderedDict()
        self._alone: deque[_Waiter] = deque()  # of a batch that failed, to be tried one by one before all others
        self._num_busy = 0
        self._num_aside = 0
        self._next = 0
        self._timer: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._quiet = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._for_reranked_only = False
        self._reranking: AsyncRecommender | None = None  # for requests with a reranker; made by the first of them

    async def __aenter__(self) -> AsyncRecommender:
        """Start, on the running event loop."""
        if self._loop is not None:
            raise Closed("an AsyncRecommender is entered once; make another one from the same recommender")
        self._begin(asyncio.get_running_loop())
        return self

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._workers = ThreadPoolExecutor(self.num_threads, thread_name_prefix="recommend")
        self._aside = ThreadPoolExecutor(max(2, self.num_threads), thread_name_prefix="recommend-aside")
        self._settle()

    def _for_reranking(self, loop: asyncio.AbstractEventLoop) -> AsyncRecommender:
        if self._reranking is None:
            self._reranking = AsyncRecommender(
                self.recommender, max_batch=self.max_batch, max_delay_ms=self.max_delay_ms, max_queue=self.max_queue,
                num_threads=self.num_threads,
            )  # fmt: skip
            self._reranking.counts, self._reranking._for_reranked_only = self.counts, True
            self._reranking._begin(loop)
        return self._reranking

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        """Close: after all answers, or at once where the body raised."""
        await self.close(drain=kind is None)

    async def close(self, *, drain: bool = True) -> None:
        """Take no more requests; return when no work is left.

        Args:
            drain: whether those who wait get their pages first; otherwise they get :class:`~recsys.errors.Closed`.
                What is being computed is always finished, since a thread cannot be stopped.
        """
        loop = self._on_own_loop(closing=True)
        self._closing = True
        try:
            if drain:
                await self._quiet.wait()
                if self._reranking is not None:
                    await self._reranking._quiet.wait()
        finally:  # also when this call is cancelled while it drains
            for waiter in (*self._waiting.values(), *self._alone):
                if not waiter.page.done():
                    waiter.page.set_exception(Closed("the recommender was closed before this request's turn"))
            self._waiting.clear()
            self._alone.clear()
            self._settle()
            if self._reranking is not None:
                await asyncio.shield(loop.create_task(self._reranking.close(drain=False)))
            self._stopping = self._stopping or loop.create_task(self._stop())
            await asyncio.shield(self._stopping)

    @property
    def num_waiting(self) -> int:
        """Requests whose computation has not begun."""
        return len(self._waiting) + (0 if self._reranking is None else self._reranking.num_waiting)

    @property
    def num_computing(self) -> int:
        """Batches that are being computed."""
        return self._num_busy + (0 if self._reranking is None else self._reranking.num_computing)

    # -- calls -----------------------------------------------------------------------------------------------------

    async def recommend(self, user_id: Any = None, *, timeout: float | None = None, **fields: Any) -> Page:
        """The page that :meth:`Recommender.recommend` gives; its timings say as ``queue_ms`` how long it waited.

        Args:
            user_id: see :class:`recsys.retrieval.request.Request`.
            timeout: seconds until an answer is of no use any more; None = no limit.
            fields: further fields of a request.

        Raises:
            InputError: a request that cannot be meant.
            Overloaded: too many wait already.
            TimeoutError: there was no answer in time.
            SourceUnavailable: the user's history cannot be read now.
            Closed: the front was not entered, or is closed.
        """
        unknown = sorted(set(fields) - set(Request.__dataclass_fields__))
        if unknown:
            raise InputError(
                f"a request has no field {unknown[0]!r}; its fields are {list(Request.__dataclass_fields__)}"
            )
        return await self.recommend_request(Request(user_id=user_id, **fields), timeout=timeout)

    async def recommend_request(self, request: Request, *, timeout: float | None = None) -> Page:
        """As :meth:`recommend`, for a request object."""
        loop = self._on_own_loop()
        if request.reranker is not None and not self._for_reranked_only:
            return await self._for_reranking(loop).recommend_request(request, timeout=timeout)
        _check_timeout(timeout)
        self.counts.requests += 1
        if len(self._waiting) >= self.max_queue:
            self._start_batches()
        if len(self._waiting) >= self.max_queue:
            self.counts.overloaded += 1
            raise Overloaded(f"{len(self._waiting)} requests wait already; try another instance, or again later")
        waiter = _Waiter(request, loop.create_future(), time.monotonic())
        number = self._next
        self._next += 1
        self._waiting[number] = waiter
        limit = asyncio.timeout(timeout)
        try:
            self._settle()
            if len(self._waiting) >= self.max_batch:
                self._start_batches()
            elif self._timer is None:
                self._timer = loop.call_soon(self._start_batches)  # after those that arrive in this turn of the loop
            async with limit:
                page = await waiter.page
        except asyncio.CancelledError:
            self.counts.cancelled += 1
            raise
        except BaseException as error:
            if isinstance(error, Closed) and self._closing:  # otherwise it is the source of histories that was closed
                self.counts.cancelled += 1
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                self.counts.timed_out += 1
                raise TimeoutError(f"no answer within {timeout:g} s") from error
            self.counts.failed += 1
            raise
        else:
            self.counts.answered += 1
            return page
        finally:
            self._waiting.pop(number, None)
            self._settle()

    async def similar_items(self, item_id: Any, k: int = 10, *, timeout: float | None = None) -> Page:
        """See :meth:`Recommender.similar_items`.

        Raises:
            Overloaded: as many calls as may wait are under way already.
            TimeoutError: there was no answer in so many seconds.
        """
        return await self.beside(lambda: self.recommender.similar_items(item_id, k), timeout=timeout)

    async def append_events(self, user_id: Any, events: Sequence[Event], *, timeout: float | None = None) -> None:
        """See :meth:`Recommender.append_events`. A call that was cancelled, or took too long, may still be stored.

        Raises:
            Overloaded: as many calls as may wait are under way already; nothing was stored.
            TimeoutError: so many seconds did not suffice; events with times can be sent again without harm.
        """
        await self.beside(lambda: self.recommender.append_events(user_id, events), timeout=timeout)

    async def beside(self, call: Callable[[], T], *, timeout: float | None = None) -> T:
        """Run any other call in one of a few threads that no batch uses, such as ``rec.explain``.

        A call whose caller was cancelled, or whose time is up, never begins if it has not begun; else it runs to its
        end, and closing waits for it.

        Args:
            call: without arguments.
            timeout: seconds until an answer is of no use any more; None = no limit.

        Raises:
            Overloaded: as many calls as may wait are under way already.
            TimeoutError: there was no answer in time.
        """
        self._on_own_loop()
        _check_timeout(timeout)
        if self._num_aside >= self.max_queue:
            raise Overloaded(f"{self._num_aside} calls are under way already; try another instance, or again later")
        task = self._aside.submit(_done, call)
        running = asyncio.wrap_future(task)
        self._num_aside += 1
        self._settle()
        running.add_done_callback(self._finish_aside)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await asyncio.shield(running)  # a caller who leaves does not free the thread
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"no answer within {timeout:g} s") from error
            raise
        finally:
            task.cancel()  # of effect only where no thread has taken it

    # -- batches ---------------------------------------------------------------------------------------------------

    def _start_batches(self) -> None:
        """Give idle workers what waits, as far as it is time to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (self._alone or self._waiting) and self._num_busy < self.num_threads:
            if self._alone:
                batch = [self._alone.popleft()]
            else:
                oldest = next(iter(self._waiting.values()))
                left_s = self.max_delay_ms / 1000 - (time.monotonic() - oldest.since)
                full = len(self._waiting) >= min(self.max_batch, self.max_queue)
                if self._num_busy and not full and left_s > 0 and not self._closing:
                    assert self._loop is not None
                    self._timer = self._loop.call_later(left_s, self._start_batches)
                    return
                size = min(self.max_batch, len(self._waiting))
                batch = [self._waiting.popitem(last=False)[1] for _ in range(size)]
            batch = [waiter for waiter in batch if not waiter.page.done()]  # somebody may have left just now
            if batch:
                self._start(batch)
        self._settle()

    def _start(self, batch: list[_Waiter]) -> None:
        assert self._loop is not None
        self._num_busy += 1
        self.counts.batches += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(batch))
        begun = time.monotonic()
        for waiter in batch:
            waiter.begun = begun
        requests = [waiter.request for waiter in batch]
        try:
            results = self._loop.run_in_executor(self._workers, _answers, self.recommender, requests)
        except RuntimeError as error:  # no thread can be started; the next batch may find one
            self._num_busy -= 1
            for waiter in batch:
                waiter.page.set_exception(error)
            return
        results.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: list[_Waiter], done: asyncio.Future[list[Page | Exception]]) -> None:
        self._num_busy -= 1
        failure = done.exception()
        if failure is not None and len(batch) > 1:
            self._alone.extend(batch)  # one of them did this; the others shall not pay for it
        else:
            for waiter, result in zip(batch, [failure] if failure is not None else done.result(), strict=True):
                if waiter.page.done():
                    continue  # nobody waits any more
                if isinstance(result, BaseException):
                    waiter.page.set_exception(result)
                else:
                    result.timings["queue_ms"] = 1e3 * (waiter.begun - waiter.since)
                    waiter.page.set_result(result)
        self._start_batches()

    # -- life ------------------------------------------------------------------------------------------------------

    def _finish_aside(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled():
            done.exception()  # seen, even if its caller has left
        self._num_aside -= 1
        self._settle()

    def _on_own_loop(self, *, closing: bool = False) -> asyncio.AbstractEventLoop:
        running = asyncio.get_running_loop()
        if self._loop is None:
            raise Closed("an AsyncRecommender starts with `async with AsyncRecommender(…) as front:`")
        if running is not self._loop:
            raise Closed(
                "this AsyncRecommender belongs to the event loop that entered it; make one per loop, the recommender "
                "may be shared"
            )
        if self._closing and not closing:
            raise Closed("the recommender is closed and takes no more requests")
        return running

    def _settle(self) -> None:
        """Note whether anything is left to do."""
        if self._waiting or self._alone or self._num_busy or self._num_aside:
            self._quiet.clear()
        else:
            self._quiet.set()

    async def _stop(self) -> None:
        await self._quiet.wait()
        if self._timer is not None:
            self._timer.cancel()
        self._workers.shutdown(wait=False)
        self._aside.shutdown(wait=False)


def _check_timeout(timeout: float | None) -> None:
    try:
        good = timeout is None or isinstance(timeout, (int, float)) and float(timeout) > 0
    except OverflowError:  # an integer beyond every float
        good = False
    if not good:
        raise InputError(f"timeout must be a positive number of seconds, got {shown(timeout)}")


def _done(call: Callable[[], T]) -> T:
    """What a call returns; runs in a worker, whose future can carry no StopIteration, and to whose caller an error of
    something else that was cancelled would look like their own cancellation."""
    try:
        return call()
    except (StopIteration, asyncio.CancelledError, CancelledError) as error:
        raise RuntimeError(f"the call ended early ({type(error).__name__})") from error


def _answers(recommender: Recommends, requests: list[Request]) -> list[Page | Exception]:
    """A page or an error for every request; runs in a worker."""
    results = _done(lambda: list(recommender.recommend_each(requests)))
    if len(results) != len(requests):
        raise RuntimeError(f"{len(requests)} requests got {len(results)} results")
    return results
