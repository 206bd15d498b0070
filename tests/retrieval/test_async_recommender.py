"""The asyncio front: everybody gets their own answer, nobody waits without bound, one bad request hurts nobody else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import Closed, InputError, Overloaded, SourceUnavailable
from recsys.events import Event
from recsys.retrieval.async_recommender import AsyncRecommender
from recsys.retrieval.history_sources import SqliteHistories, over_bundle
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.request import Request

AT = 1_702_000_000


@pytest.fixture(scope="module")
def rec(toy_bundle: Path) -> Recommender:
    return Recommender.load(toy_bundle)


def assert_same(left: Page, right: Page) -> None:
    assert left.item_ids == right.item_ids
    assert (left.num_reachable, left.notes) == (right.num_reachable, right.notes)
    assert [hit.score for hit in left] == pytest.approx([hit.score for hit in right], abs=1e-5)
    for one, other in zip(left, right, strict=True):
        assert one.actions == pytest.approx(other.actions, abs=1e-5)


MIXED: list[dict[str, Any]] = [
    *({"user_id": f"u{row}", "k": 3 + row % 7, "at": AT + row} for row in range(24)),
    {"at": AT},
    {"user_id": "stranger", "at": AT, "rank": False},
    {"history": [Event(item_id="i3", actions="click")], "exclude": ["i4", "i5"], "at": AT, "surface": "home"},
    {"user_id": "u4", "allow": ["i1", "i2", "i3"], "at": AT},
    {"user_id": "u5", "allow": ["i3", "i2", "i1"], "at": AT},
    {"user_id": "u6", "retrievers": ("memory", "dense"), "at": AT},
    {"user_id": "u6", "allow": [], "at": AT},
    {"user_id": "u9", "rank_by": {"like": 2.0, "hide": -1.0}, "at": AT},
]


class Echo:
    """Answers with the k of the request, when the gate is open; no model, to test waiting itself."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.gate = threading.Event()
        if is_open:
            self.gate.set()
        self.batches: list[list[int]] = []
        self.began = threading.Semaphore(0)
        self.poison: Callable[[Request], Exception | None] = lambda request: None
        self.refuse: Callable[[Request], Exception | None] = lambda request: None

    def recommend_each(self, requests: Sequence[Request]) -> list[Page | Exception]:
        self.batches.append([request.k for request in requests])
        self.began.release()
        assert self.gate.wait(10)
        for request in requests:
            if (error := self.poison(request)) is not None:
                raise error
        return [self.refuse(r) or Page((Hit(r.k, 1.0),), r.k) for r in requests]

    def similar_items(self, item_id: Any, k: int = 10) -> Page:
        assert self.gate.wait(10)
        return Page((Hit(item_id, 1.0),), k)

    def append_events(self, user_id: Any, events: Sequence[Event]) -> None:
        assert self.gate.wait(10)


async def turns(count: int = 5) -> None:
    """Let all tasks run until they wait for something."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def spawn(front: AsyncRecommender, ks: Sequence[int], **settings: Any) -> list[asyncio.Task[Page]]:
    return [asyncio.create_task(front.recommend(k=k, **settings)) for k in ks]


# -- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 3])
def test_concurrent_calls_get_the_answers_of_single_calls(rec: Recommender, num_threads: int) -> None:
    async def ask() -> tuple[list[Page], AsyncRecommender]:
        async with AsyncRecommender(rec, max_batch=8, num_threads=num_threads) as front:
            pages = await asyncio.gather(*(front.recommend(**fields) for fields in MIXED))
            similar = await front.similar_items("i4", k=6)
            assert similar == rec.similar_items("i4", k=6)
        return pages, front

    pages, front = asyncio.run(ask())
    for fields, page in zip(MIXED, pages, strict=True):
        assert_same(page, rec.recommend(**fields))
    assert 1 < front.counts.largest_batch <= 8
    assert front.counts.batches < len(MIXED)
    assert front.counts.answered == front.counts.requests == len(MIXED)


def test_every_caller_gets_the_page_of_its_own_request() -> None:
    async def ask() -> None:
        async with AsyncRecommender(Echo(), max_batch=7, num_threads=2, max_delay_ms=1) as front:
            pages = await asyncio.gather(*spawn(front, range(1, 101)))
        assert [page.item_ids for page in pages] == [[k] for k in range(1, 101)]

    asyncio.run(ask())


def test_a_request_that_cannot_be_meant_fails_alone(rec: Recommender) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"k": 0}, "k must be a positive integer"),
        ({"user": "u1"}, "a request has no field 'user'"),
        ({"retrievers": ("psychic",)}, "there is no retriever 'psychic'"),
        ({"history": [Event(item_id="i1", actions="buys")]}, "'buys' is no action"),
        ({"rank_by": "buys"}, "not by 'buys'"),
        ({"timeout": 0}, "timeout must be a positive number of seconds"),
        ({"timeout": 10**400}, "timeout must be a positive number of seconds"),
    ]

    async def ask() -> list[Any]:
        async with AsyncRecommender(rec, max_batch=64) as front:
            calls = [front.recommend(**fields) for fields, _ in bad] + [front.recommend(**fields) for fields in MIXED]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert front.counts.batches == 1
        return results

    results = asyncio.run(ask())
    for (_, match), error in zip(bad, results[: len(bad)], strict=True):
        assert isinstance(error, InputError) and match in str(error)
    for fields, page in zip(MIXED, results[len(bad) :], strict=True):
        assert_same(page, rec.recommend(**fields))


def test_a_batch_that_fails_is_tried_one_by_one() -> None:
    """Only whom it concerns sees the error, even where it breaks the whole batch, and the order of work is kept."""

    async def ask() -> None:
        echo = Echo(is_open=False)
        echo.poison = lambda request: MemoryError("too large") if request.k == 13 else None
        async with AsyncRecommender(echo, max_batch=4) as front:
            first = spawn(front, [1])
            await until(lambda: len(echo.batches) == 1)
            later = spawn(front, [11, 12, 13, 14, 15])
            await turns()
            echo.gate.set()
            results = await asyncio.gather(*first, *later, return_exceptions=True)
            assert echo.batches == [[1], [11, 12, 13, 14], [11], [12], [13], [14], [15]]
        assert [result.item_ids for result in results if isinstance(result, Page)] == [[1], [11], [12], [14], [15]]
        assert isinstance(results[3], MemoryError)
        assert (front.counts.answered, front.counts.failed) == (5, 1)

    asyncio.run(ask())


def test_a_recommender_that_answers_too_little_is_an_error_not_a_hang() -> None:
    class Short(Echo):
        def recommend_each(self, requests: Sequence[Request]) -> list[Page | Exception]:
            if len(requests) == 1 and requests[0].k == 2:
                raise StopIteration
            return super().recommend_each(requests)[1:]

    async def ask() -> None:
        async with AsyncRecommender(Short()) as front:
            results = await asyncio.gather(*spawn(front, [1, 2]), return_exceptions=True)
        errors = [str(result) for result in results]
        assert errors == ["1 requests got 0 results", "the call ended early (StopIteration)"]

    asyncio.run(ask())


@pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError, concurrent.futures.CancelledError])
def test_an_error_that_means_something_to_a_loop_is_an_error_not_a_hang(error: type[BaseException]) -> None:
    """No future carries the first, and the others would look as if the caller had been cancelled."""

    class Early(Echo):
        def recommend_each(self, requests: Sequence[Request]) -> list[Page | Exception]:
            raise error

        def similar_items(self, item_id: Any, k: int = 10) -> Page:
            raise error

    async def ask() -> None:
        front = AsyncRecommender(Early())
        await front.__aenter__()
        for call in (front.recommend(), front.similar_items("i1")):
            task = asyncio.create_task(call)
            await asyncio.wait([task], timeout=5)
            assert task.done() and not task.cancelled()
            assert str(task.exception()) == f"the call ended early ({error.__name__})"
        assert (front.counts.failed, front.counts.cancelled) == (1, 0)
        await front.close()

    asyncio.run(ask())


def test_a_thread_that_cannot_be_started_fails_its_requests_and_no_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container allows no more threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> None:
        front = AsyncRecommender(Echo(), max_batch=2)
        async with front:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                async with asyncio.timeout(10):
                    results = await asyncio.gather(*spawn(front, [1, 2, 3]), return_exceptions=True)
                assert [str(result) for result in results] == ["can't start new thread"] * 3
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await front.similar_items("i1")
            async with asyncio.timeout(10):
                assert (await front.recommend(k=7)).item_ids == [7]
                assert (await front.similar_items("i1", k=3)).item_ids == ["i1"]
                await front.close()
        assert (front.counts.failed, front.counts.answered) == (3, 1)

    asyncio.run(ask())


# -- batches -------------------------------------------------------------------------------------------------------


def test_an_idle_front_does_not_wait_and_a_busy_one_collects() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo, max_batch=4, max_delay_ms=60_000) as front:
            tasks = spawn(front, [1])
            await until(lambda: echo.batches == [[1]])
            tasks += spawn(front, [2, 3, 4, 5, 6, 7])
            await turns()
            assert (front.num_waiting, front.num_computing) == (6, 1)
            echo.gate.set()
            await asyncio.gather(*tasks)
            assert echo.batches == [[1], [2, 3, 4, 5], [6, 7]]  # in order of arrival

    asyncio.run(ask())


def test_calls_of_one_turn_share_a_batch() -> None:
    async def ask() -> None:
        echo = Echo()
        async with AsyncRecommender(echo, max_batch=64, max_delay_ms=60_000) as front:
            await asyncio.gather(*spawn(front, range(1, 20)))
        assert echo.batches == [list(range(1, 20))]

    asyncio.run(ask())


def test_a_second_worker_joins_in_when_a_batch_is_full_or_its_time_has_come() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo, max_batch=3, max_delay_ms=120, num_threads=3) as front:
            tasks = spawn(front, [1])
            await until(lambda: len(echo.batches) == 1)
            tasks += spawn(front, [2, 3, 4])  # full
            await until(lambda: len(echo.batches) == 2)
            begin = time.monotonic()
            tasks += spawn(front, [5])
            await asyncio.sleep(0.02)
            tasks += spawn(front, [6])
            assert time.monotonic() - begin > 0.1 or len(echo.batches) == 2  # only where this machine stood still
            await until(lambda: len(echo.batches) == 3)
            assert time.monotonic() - begin >= 0.119
            assert echo.batches == [[1], [2, 3, 4], [5, 6]]
            echo.gate.set()
            await asyncio.gather(*tasks)

    asyncio.run(ask())


# -- bounds --------------------------------------------------------------------------------------------------------


def test_a_full_queue_turns_requests_away_at_once() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo, max_batch=2, max_queue=5) as front:
            accepted = spawn(front, [1])
            await until(lambda: len(echo.batches) == 1)
            tasks = spawn(front, range(2, 22))
            await turns()
            turned_away = [task for task in tasks if task.done()]
            assert len(turned_away) == 15 == front.counts.overloaded
            assert tasks[5:] == turned_away  # the first five wait
            for task in turned_away:
                assert isinstance(task.exception(), Overloaded)
            assert "5 requests wait already" in str(tasks[-1].exception())
            echo.gate.set()
            await asyncio.gather(*accepted, *tasks[:5])
            assert (await front.recommend(k=99)).item_ids == [99]  # there is room again
            assert sum(map(len, echo.batches)) == 7

    asyncio.run(ask())


def test_an_idle_front_takes_more_than_its_queue_holds() -> None:
    async def ask() -> None:
        async with AsyncRecommender(Echo(is_open=False), max_batch=8, max_queue=3, num_threads=2) as front:
            tasks = spawn(front, range(1, 13))
            await turns()
            assert sum(task.done() for task in tasks) == 12 - 9 == front.counts.overloaded
            front.recommender.gate.set()  # type: ignore[attr-defined]
            await asyncio.gather(*tasks[:9])

    asyncio.run(ask())


def test_a_cancelled_request_is_not_computed_and_frees_its_place() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo, max_batch=8, max_queue=4) as front:
            tasks = spawn(front, [1])
            await until(lambda: len(echo.batches) == 1)
            for _ in range(50):  # the queue stays as small as it looks
                leaving = spawn(front, [2, 3, 4, 5])
                await turns()
                assert front.num_waiting == 4
                for task in leaving:
                    task.cancel()
                await turns()
                assert front.num_waiting == 0
            tasks += spawn(front, [6, 7, 8])
            await turns()
            tasks[2].cancel()
            tasks[0].cancel()  # in computation: its page goes nowhere
            await turns()
            echo.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError, Page, asyncio.CancelledError, Page]
            assert echo.batches == [[1], [6, 8]]
            assert (front.counts.overloaded, front.counts.cancelled, front.counts.answered) == (0, 202, 2)

    asyncio.run(ask())


def test_a_request_whose_time_is_up_is_not_computed() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo) as front:
            tasks = spawn(front, [1], timeout=0.05)
            await until(lambda: len(echo.batches) == 1)
            tasks += spawn(front, [2], timeout=0.05)
            tasks += spawn(front, [3], timeout=60)
            await until(lambda: tasks[0].done() and tasks[1].done())
            assert not echo.gate.is_set()  # nobody waited for the batch under way
            echo.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [str(error) for error in results[:2]] == ["no answer within 0.05 s"] * 2
            assert all(isinstance(error, TimeoutError) for error in results[:2])
            assert results[2].item_ids == [3]  # type: ignore[union-attr]
            assert echo.batches == [[1], [3]]
            assert front.counts.timed_out == 2

    asyncio.run(ask())


def test_a_time_out_of_the_recommender_itself_is_passed_on() -> None:
    async def ask() -> None:
        echo = Echo()
        echo.refuse = lambda request: TimeoutError("its own")
        async with AsyncRecommender(echo) as front:
            with pytest.raises(TimeoutError, match="its own"):
                await front.recommend()
            assert (front.counts.failed, front.counts.timed_out) == (1, 0)

    asyncio.run(ask())


def test_a_source_that_was_closed_is_a_failure_and_no_cancelled_request() -> None:
    async def ask() -> None:
        echo = Echo()
        echo.refuse = lambda request: Closed("events.sqlite was closed")
        async with AsyncRecommender(echo) as front:
            with pytest.raises(Closed, match="events.sqlite"):
                await front.recommend()
            assert (front.counts.failed, front.counts.cancelled) == (1, 0)

    asyncio.run(ask())


def test_calls_beside_the_batches_are_bounded_too() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo, max_queue=3) as front:
            tasks = [asyncio.create_task(front.similar_items(row)) for row in range(2)]
            append = asyncio.create_task(front.append_events("u", []))
            await turns()
            with pytest.raises(Overloaded, match="3 calls are under way already"):
                await front.append_events("u", [])
            tasks[0].cancel()
            await turns()
            with pytest.raises(Overloaded):  # its thread is still at work
                await front.similar_items(9)
            echo.gate.set()
            assert (await tasks[1]).item_ids == [1]
            await append
            await until(lambda: front._num_aside == 0)
            assert (await front.similar_items(9)).item_ids == [9]

    asyncio.run(ask())


def test_a_call_beside_whose_time_is_up_never_begins_if_no_thread_has_taken_it() -> None:
    async def ask() -> None:
        echo, begun = Echo(is_open=False), list[int]()
        async with AsyncRecommender(echo) as front:  # two threads for such calls
            busy = [asyncio.create_task(front.similar_items(row)) for row in range(2)]
            await turns()
            with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
                await front.beside(lambda: begun.append(1), timeout=0.05)
            await until(lambda: front._num_aside == 2)
            with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
                await front.append_events("u", [], timeout=0.05)
            echo.gate.set()
            assert [page.item_ids for page in await asyncio.gather(*busy)] == [[0], [1]]
            with pytest.raises(InputError, match="timeout must be a positive number"):
                await front.similar_items(1, timeout=0.0)
        assert not begun

    asyncio.run(ask())


def test_a_page_says_how_long_it_waited_for_its_batch() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo) as front:
            first = spawn(front, [1])[0]
            await until(lambda: len(echo.batches) == 1)
            second = spawn(front, [2])[0]
            await asyncio.sleep(0.2)
            echo.gate.set()
            assert (await first).timings["queue_ms"] < 150 <= (await second).timings["queue_ms"]

    asyncio.run(ask())


@pytest.mark.parametrize(
    "settings",
    [{"max_batch": 0}, {"max_queue": True}, {"num_threads": 1.5}, {"max_delay_ms": -1}, {"max_delay_ms": float("nan")}],
    ids=str,
)
def test_bounds_that_are_none_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))} must be a"):
        AsyncRecommender(Echo(), **settings)


# -- life ----------------------------------------------------------------------------------------------------------


def test_leaving_the_block_answers_those_who_wait() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        async with AsyncRecommender(echo, max_batch=2) as front:
            tasks = spawn(front, [1, 2, 3, 4, 5])
            await turns()
            asyncio.get_running_loop().call_later(0.02, echo.gate.set)
        assert all(task.done() for task in tasks)
        assert [task.result().item_ids for task in tasks] == [[k] for k in range(1, 6)]
        with pytest.raises(Closed, match="takes no more requests"):
            await front.recommend()
        await front.close()
        with pytest.raises(Closed, match="is entered once"):
            await front.__aenter__()

    asyncio.run(ask())


def test_a_failing_block_lets_those_who_wait_go() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        tasks: list[asyncio.Task[Page]] = []
        with pytest.raises(ZeroDivisionError):
            async with AsyncRecommender(echo, max_batch=1) as front:
                tasks += spawn(front, [1, 2, 3])
                await until(lambda: len(echo.batches) == 1)
                asyncio.get_running_loop().call_later(0.02, echo.gate.set)
                raise ZeroDivisionError
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [Page, Closed, Closed]
        assert echo.batches == [[1]]
        assert front.counts.cancelled == 2

    asyncio.run(ask())


def test_closing_can_itself_be_cancelled() -> None:
    async def ask() -> None:
        echo = Echo(is_open=False)
        front = await AsyncRecommender(echo, max_batch=1).__aenter__()
        tasks = spawn(front, [1, 2])
        await until(lambda: len(echo.batches) == 1)
        closing = asyncio.create_task(front.close())
        await turns()
        closing.cancel()
        await turns()
        assert isinstance(tasks[1].exception(), Closed)
        echo.gate.set()
        assert (await tasks[0]).item_ids == [1]
        with pytest.raises(asyncio.CancelledError):
            await closing
        await front.close()

    asyncio.run(ask())


def test_one_front_belongs_to_one_event_loop() -> None:
    front = AsyncRecommender(Echo())

    async def enter() -> None:
        await front.__aenter__()
        assert (await front.recommend(k=4)).item_ids == [4]

    async def ask() -> Page:
        return await front.recommend()

    calls: list[tuple[Callable[[], Coroutine[Any, Any, Any]], str]] = [
        (ask, "starts with `async with"),
        (enter, ""),
        (ask, "make one per loop"),
        (front.close, "make one per loop"),
    ]
    for call, match in calls:
        if match:
            with pytest.raises(Closed, match=match):
                asyncio.run(call())
        else:
            asyncio.run(call())


# -- with a store of events ----------------------------------------------------------------------------------------


def test_appended_events_count_in_the_next_request(toy_bundle: Path, rec: Recommender, tmp_path: Path) -> None:
    event = Event(item_id="i3", actions="like", timestamp=AT - 5)

    async def ask() -> None:
        with SqliteHistories(tmp_path / "events.sqlite") as store:
            ours = Recommender(rec.bundle, history_source=over_bundle(store))
            async with AsyncRecommender(ours) as front:
                before = await front.recommend("u7", at=AT)
                await front.append_events("u7", [event])
                after = await front.recommend("u7", at=AT)
        assert_same(before, rec.recommend("u7", at=AT))
        assert_same(after, rec.recommend("u7", new_events=[event], at=AT))
        assert before[0].score != after[0].score

    asyncio.run(ask())


def test_a_store_that_fails_concerns_only_those_who_need_it(rec: Recommender, tmp_path: Path) -> None:
    async def ask() -> list[Any]:
        path = tmp_path / "events.sqlite"
        with SqliteHistories(path) as store:
            path.rename(tmp_path / "elsewhere")
            async with AsyncRecommender(Recommender(rec.bundle, history_source=store)) as front:
                return await asyncio.gather(*(front.recommend(**fields) for fields in MIXED), return_exceptions=True)

    for fields, result in zip(MIXED, asyncio.run(ask()), strict=True):
        if "user_id" in fields:
            assert isinstance(result, SourceUnavailable) and "is gone" in str(result)
        else:
            assert_same(result, rec.recommend(**fields))


# -- many at once --------------------------------------------------------------------------------------------------


def soak(rec: Recommender, seconds: float) -> AsyncRecommender:
    """64 coroutines ask, leave and give up at random; every page must be that of its request."""
    expected = [rec.recommend(**fields) for fields in MIXED]

    async def ask(front: AsyncRecommender, number: int, end: float) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < end:
            row = int(rng.integers(len(MIXED)))
            patience = (None, None, None, 10.0, 0.003)[int(rng.integers(5))]
            call = asyncio.ensure_future(front.recommend(**MIXED[row], timeout=patience))
            if rng.random() < 0.1:
                await asyncio.sleep(float(rng.random()) * 0.01)
                call.cancel()
            if rng.random() < 0.02:
                with pytest.raises((InputError, Overloaded)):
                    await front.recommend(retrievers=("psychic",))
            (result,) = await asyncio.gather(call, return_exceptions=True)
            if isinstance(result, Page):
                assert_same(result, expected[row])
            else:
                assert isinstance(result, (TimeoutError, asyncio.CancelledError, Overloaded))
                if isinstance(result, Overloaded):
                    await asyncio.sleep(0.005)

    async def main() -> AsyncRecommender:
        async with AsyncRecommender(rec, max_batch=16, max_queue=40, num_threads=2) as front:
            end = time.monotonic() + seconds
            await asyncio.gather(*(ask(front, number, end) for number in range(64)))
        assert (front.num_waiting, front.num_computing) == (0, 0)
        return front

    return asyncio.run(main())


def assert_balanced(front: AsyncRecommender) -> None:
    c = front.counts
    assert c.requests == c.answered + c.failed + c.overloaded + c.timed_out + c.cancelled
    assert min(c.answered, c.timed_out, c.cancelled) > 0
    assert 1 < c.largest_batch <= 16


def test_sixty_four_coroutines_get_their_own_answers(rec: Recommender) -> None:
    front = soak(rec, seconds=4.0)
    assert_balanced(front)
    assert front.counts.answered >= 64


@pytest.mark.slow
def test_sixty_four_coroutines_for_two_minutes(rec: Recommender) -> None:
    front = soak(rec, seconds=120.0)
    assert_balanced(front)
    assert front.counts.answered > 2000
