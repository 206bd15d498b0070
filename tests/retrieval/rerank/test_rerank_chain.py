"""Rerankers inside Recommender.recommend: what they may change, and what they never do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.async_recommender import AsyncRecommender
from recsys.retrieval.limits import Limits
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.reordering import Reordered, ShortList
from recsys.retrieval.request import Request
from recsys.retrieval.rerank import Reranker, RerankRequest, RerankResult
from recsys.retrieval.rerank.chain import RerankChain
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.result import Faults
from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Floor, Pin

AT = 1_700_900_000


class Backwards(Reranker):
    """The last first; notes what it was asked."""

    name = "backwards"

    def __init__(self) -> None:
        self.asked: list[RerankRequest] = []

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        self.asked += requests
        usage = Usage(calls=1, prompt_tokens=7, seconds=0.1, cost=0.002)
        return [RerankResult(ids=one.ids[::-1], candidates=one.ids, usage=usage) for one in requests]


class AsBefore(Reranker):
    """Nothing changes."""

    name = "as-before"

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        return [RerankResult(ids=one.ids, candidates=one.ids) for one in requests]


class Slow(Backwards):
    """Sleeps; ``polite`` ones look at the deadline, others hold even the event loop."""

    def __init__(self, seconds: float, how: str) -> None:
        super().__init__()
        self.seconds, self.how = seconds, how

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        if self.how == "holds the loop":
            time.sleep(self.seconds)
        elif self.how == "sleeps":
            await asyncio.sleep(self.seconds)
        elif deadline is not None and deadline - time.monotonic() < self.seconds:
            await asyncio.sleep(max(deadline - time.monotonic(), 0.0))
            return [
                RerankResult(
                    ids=one.ids[::-1], candidates=one.ids, complete=False, faults=Faults(failed=1), usage=Usage(calls=3)
                )
                for one in requests
            ]
        return await super().rerank_async(requests, deadline=deadline)


class Broken(Reranker):
    """Raises what it is told to."""

    name = "broken"

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        raise self.error


@pytest.fixture(scope="module")
def rec(toy_bundle: Path) -> Recommender:
    return Recommender.load(toy_bundle)


def shown(page: Page | Sequence[Hit]) -> list[tuple[Any, ...]]:
    """What a page says of its hits; figures to the rounding that differs with the number of candidates."""
    return [
        (
            hit.item_id,
            hit.retriever,
            pytest.approx(hit.score, abs=1e-5),
            {name: pytest.approx(chance, abs=1e-5) for name, chance in hit.actions.items()},
        )
        for hit in page
    ]


def rows(page: Page) -> list[tuple[Any, ...]]:
    return [(hit.item_id, hit.retriever, hit.score, hit.actions) for hit in page]


def same(page: Page, other: Page) -> bool:
    """Whether two pages say the same."""
    assert rows(page) == shown(other)
    return (page.notes, page.num_reachable, page.version) == (other.notes, other.num_reachable, other.version)


def test_the_same_order_changes_nothing(rec: Recommender) -> None:
    for fields in ({}, {"rank_by": "like"}, {"retrievers": ("dense", "memory")}, {"k": 3}, {"k": 25}):
        plain = rec.recommend("u3", at=AT, **fields)
        assert same(rec.recommend("u3", at=AT, reranker=AsBefore(), **fields), plain), fields


def test_exactly_the_first_candidates_turn_around(rec: Recommender) -> None:
    plain = rec.recommend("u3", k=12, at=AT)
    page = rec.recommend("u3", k=12, at=AT, reranker=RerankChain(Backwards(), top=5))
    assert rows(page) == shown([*plain[:5][::-1], *plain[5:]])
    assert page.notes == plain.notes
    counts = page.timings["counts"]
    assert (counts["rerank_calls"], counts["rerank_prompt_tokens"], counts["rerank_failed"]) == (1, 7, 0)
    assert (counts["rerank_model_ms"], counts["rerank_cost_millionths"]) == (100, 2000)
    assert page.timings["batch_ms"]["rerank"] >= 0 and "rerank" not in plain.timings["batch_ms"]


def test_candidates_beyond_the_page_may_come_first(rec: Recommender) -> None:
    wide = rec.recommend("u3", k=8, at=AT)
    page = rec.recommend("u3", k=2, at=AT, reranker=RerankChain(Backwards(), top=8))
    assert page.item_ids == wide.item_ids[::-1][:2]


def test_a_reranker_itself_serves_as_a_chain(rec: Recommender) -> None:
    page = rec.recommend("u3", k=4, at=AT, reranker=Backwards())
    wide = rec.recommend("u3", k=20, at=AT)
    assert page.item_ids == wide.item_ids[::-1][:4]


def test_it_is_the_order_of_rank_by_that_is_reordered(rec: Recommender) -> None:
    plain = rec.recommend("u3", k=6, at=AT, rank_by="like", candidates=12)
    page = rec.recommend("u3", k=6, at=AT, rank_by="like", candidates=12, reranker=RerankChain(Backwards(), top=4))
    assert rows(page) == shown([*plain[:4][::-1], *plain[4:]])


def test_the_reranker_reads_this_user_and_nobody_else(rec: Recommender) -> None:
    asked = Backwards()
    events = [Event(item_id="i3", actions="like", timestamp=AT - 60), Event(item_id="nowhere", timestamp=AT - 30)]
    rec.recommend_batch(
        [
            {"user_id": "u3", "reranker": asked, "at": AT},
            {"history": events, "reranker": asked, "at": AT, "k": 3},
            {"reranker": asked, "at": AT},
        ]
    )
    assert len(asked.asked) == 3
    stored = rec.events_of("u3")
    assert stored is not None and list(asked.asked[0].events) == stored
    assert [item.item_id for item in asked.asked[0].history] == [event.item_id for event in stored]
    assert [(item.item_id, item.actions) for item in asked.asked[1].history] == [("i3", ("like",)), ("", ())]
    titles = dict(rec.items.select("item_id", "title").iter_rows())
    assert titles["i3"] in asked.asked[1].history[0].text and asked.asked[1].history[1].text == ""
    assert asked.asked[2].history == () and asked.asked[2].events == ()
    for request in asked.asked:
        assert request.at == AT
        assert len(request.ids) == min(20, len(request.candidates)) > 4
        assert all(item.text.startswith(titles[item.item_id]) for item in request.candidates)
        scores = [item.score for item in request.candidates]
        assert scores == sorted(scores, reverse=True)


def test_rules_hold_on_a_reranked_page(rec: Recommender) -> None:
    chain = RerankChain(Backwards(), top=10)
    plain = rec.recommend("u3", k=20, at=AT)
    page = rec.recommend("u3", k=5, at=AT, reranker=chain, rules=[Pin(item=plain.item_ids[12], place=2)])
    turned = plain.item_ids[:10][::-1]
    assert page.item_ids == [turned[0], plain.item_ids[12], *turned[1:4]]
    assert page[1].retriever == "pin"
    low = plain[5].score
    floored = rec.recommend("u3", k=20, at=AT, reranker=chain, rules=[Floor(at_least=low)])
    assert floored.item_ids == plain.item_ids[:6][::-1] and all(hit.score >= low for hit in floored)
    boosted = rec.recommend("u3", k=3, at=AT, reranker=chain, rules=[Boost(items=[plain.item_ids[9]], weight=-1e6)])
    assert boosted.item_ids == turned[1:4]
    capped = rec.recommend("u3", k=6, at=AT, reranker=chain, rules=[Cap("title", n=1)])
    titles = dict(rec.items.select("item_id", "title").iter_rows())
    first: dict[str, str] = {}
    for item in [*turned, *plain.item_ids[10:]]:
        first.setdefault(titles[item], item)
    assert capped.item_ids == list(first.values())[: len(capped)]


@pytest.mark.parametrize("rules", [[MMR(lam=0.7)], [Explore(temperature=0.5, seed=3)]])
def test_rules_that_weigh_scores_see_those_of_the_places(rec: Recommender, rules: list[Any]) -> None:
    same = rec.recommend("u3", k=5, at=AT, rules=rules)
    assert rec.recommend("u3", k=5, at=AT, rules=rules, reranker=AsBefore()).item_ids == same.item_ids
    page = rec.recommend("u3", k=5, at=AT, rules=rules, reranker=Backwards())
    assert len(set(page.item_ids)) == 5 and page.item_ids != same.item_ids


@pytest.mark.parametrize("how", ["sleeps", "holds the loop", "looks at the deadline"])
def test_past_the_deadline_the_ranked_order_is_returned(rec: Recommender, how: str) -> None:
    plain = rec.recommend("u3", k=6, at=AT)
    began = time.monotonic()
    page = rec.recommend("u3", k=6, at=AT, reranker=Slow(0.6, how), rerank_ms=60)
    assert time.monotonic() - began < 0.55
    assert rows(page) == shown(plain)
    assert page.notes == ("the reranker backwards did not answer in time; the order is that from before it",)
    assert page.timings["counts"]["rerank_failed"] == 1
    assert page.timings["counts"].get("rerank_calls") == (3 if how == "looks at the deadline" else None), "was paid for"
    if how == "holds the loop":
        time.sleep(0.6)  # others shall not wait for it
    chain = RerankChain(Slow(0.05, "sleeps"), deadline_ms=5_000)
    assert rec.recommend("u3", k=6, at=AT, reranker=chain).item_ids != plain.item_ids


def test_answers_in_part_are_used_before_the_deadline_and_said(rec: Recommender) -> None:
    class Partly(Backwards):
        async def rerank_async(self, requests: Any, *, deadline: float | None = None) -> list[RerankResult]:
            return [
                RerankResult(
                    ids=(one.ids[1], one.ids[0], *one.ids[2:]),
                    candidates=one.ids,
                    complete=False,
                    faults=Faults(failed=2, malformed=1),
                    notes=("the model was not reached",),
                )
                for one in requests
            ]

    plain = rec.recommend("u3", k=4, at=AT)
    page = rec.recommend("u3", k=4, at=AT, reranker=Partly(), rerank_ms=5_000)
    assert page.item_ids == [plain.item_ids[1], plain.item_ids[0], *plain.item_ids[2:]]
    assert page.notes[0] == "the model was not reached" and "answered in part" in page.notes[1]
    assert page.timings["counts"]["rerank_malformed"] == 1 and page.timings["counts"]["rerank_failed"] == 2


def test_a_reranker_that_breaks_costs_its_order_only(rec: Recommender, caplog: pytest.LogCaptureFixture) -> None:
    plain = rec.recommend("u3", k=4, at=AT)
    page = rec.recommend("u3", k=4, at=AT, reranker=Broken(RuntimeError("weights are gone")))
    assert rows(page) == shown(plain) and page.notes == (
        "the reranker broken failed; the order is that from before it",
    )
    assert "weights are gone" in caplog.text
    with pytest.raises(InputError, match="no such prompt"):
        rec.recommend("u3", k=4, at=AT, reranker=Broken(InputError("no such prompt")))


def test_a_reranker_that_waits_for_its_own_loop_costs_its_order_only(rec: Recommender) -> None:
    class Around(Backwards):
        """Asks another reranker by the method for callers without an event loop."""

        async def rerank_async(self, requests: Any, *, deadline: float | None = None) -> list[RerankResult]:
            return Backwards().rerank(requests)

    plain = rec.recommend("u3", k=4, at=AT)
    assert rec.recommend("u3", k=4, at=AT, reranker=Around(), rerank_ms=5_000).item_ids == plain.item_ids
    after = rec.recommend("u3", k=4, at=AT, reranker=Backwards(), rerank_ms=5_000)
    assert after.item_ids != plain.item_ids, "others go on"


@pytest.mark.parametrize("weight", [None, 0.5])
@pytest.mark.parametrize("what", ["nothing", "other items", "fewer items", "another order before it"])
def test_a_result_of_another_list_costs_its_order_only(
    rec: Recommender, what: str, weight: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Astray(AsBefore):
        async def rerank_async(self, requests: Any, *, deadline: float | None = None) -> list[RerankResult]:
            ids = {
                "other items": lambda one: ("x", "y"), "fewer items": lambda one: one[:2],
                "another order before it": lambda one: one[::-1],
            }  # fmt: skip
            return [
                RerankResult(ids=one.ids if what == "another order before it" else ids[what](one.ids),
                             candidates=ids[what](one.ids)) for one in requests if what in ids
            ]  # fmt: skip

    plain = rec.recommend("u3", k=6, at=AT)
    page = rec.recommend("u3", k=6, at=AT, reranker=RerankChain(Astray(), top=4, weight=weight))
    assert rows(page) == shown(plain) and "failed; the order is that from before it" in page.notes[0]
    assert page.timings["counts"]["rerank_failed"] == 1 and "the reranker as-before gave" in caplog.text


def test_an_order_that_is_none_is_not_taken(rec: Recommender) -> None:
    class Loose:
        num_reordered = 4

        def __init__(self, places: list[int]) -> None:
            self.places = places

        def reorder(self, lists: Sequence[ShortList], *, deadline: float | None) -> list[Reordered]:
            return [Reordered(places=self.places) for _ in lists]

    plain = rec.recommend("u3", k=6, at=AT)
    for places in ([0, 0, 1, 2], [3, 2, 1], [0, 1, 2, 9], []):
        page = rec.recommend("u3", k=6, at=AT, reranker=Loose(places))
        assert rows(page) == shown(plain) and "no order of the candidates" in page.notes[0]
    assert rec.recommend("u3", k=6, at=AT, reranker=Loose([1, 0, 2, 3])).item_ids[:2] == plain.item_ids[1::-1]


def test_a_batch_answers_as_single_requests_do(rec: Recommender) -> None:
    first, second = RerankChain(Backwards(), top=6), RerankChain(Backwards(), top=9)
    fields = [
        {"user_id": f"u{number}", "k": 5, "at": AT, "reranker": chain, **more}
        for number, (chain, more) in enumerate(
            [(first, {}), (second, {}), (None, {}), (first, {"rerank_ms": 4_000.0}), (second, {"rank_by": "like"})] * 3
        )
    ]
    pages = rec.recommend_batch(fields)
    assert all(same(page, rec.recommend(**one)) for page, one in zip(pages, fields, strict=True))
    each = rec.recommend_each([Request(**one) for one in fields])
    assert all(isinstance(one, Page) and same(one, page) for one, page in zip(each, pages, strict=True))
    assert "rerank" not in pages[2].timings["share_ms"] and "rerank" in pages[3].timings["share_ms"]


def test_threads_and_the_asyncio_front_share_a_reranker(rec: Recommender) -> None:
    chain = RerankChain(Backwards(), top=7)
    fields = [{"user_id": f"u{number}", "k": 5, "at": AT, "reranker": chain} for number in range(12)]
    expected = [rec.recommend(**one) for one in fields]
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda one: rec.recommend(**one), fields))
    assert all(same(page, other) for page, other in zip(pages, expected, strict=True))

    async def ask() -> list[Page]:
        async with AsyncRecommender(rec) as front:
            return list(await asyncio.gather(*(front.recommend(**one) for one in fields)))

    assert all(same(page, other) for page, other in zip(asyncio.run(ask()), expected, strict=True))


def test_who_wants_no_reranker_does_not_wait_for_one(rec: Recommender) -> None:
    slow = RerankChain(Slow(0.5, "sleeps"))

    async def ask() -> tuple[float, Page, Any]:
        async with AsyncRecommender(rec) as front:
            reranked = asyncio.create_task(front.recommend("u1", k=5, at=AT, reranker=slow))
            await asyncio.sleep(0.05)
            began = time.monotonic()
            await front.recommend("u2", k=5, at=AT)
            waited = time.monotonic() - began
            return waited, await reranked, front.counts

    waited, page, counts = asyncio.run(ask())
    assert waited < 0.3 and same(page, rec.recommend("u1", k=5, at=AT, reranker=Backwards()))
    assert counts.requests == counts.answered == 2


def test_texts_are_those_of_the_answering_snapshot(toy_bundle: Path) -> None:
    rec, began, go = Recommender.load(toy_bundle), threading.Event(), threading.Event()

    class Waits(Backwards):
        async def rerank_async(self, requests: Any, *, deadline: float | None = None) -> list[RerankResult]:
            began.set()
            await asyncio.to_thread(go.wait, 5)
            return await super().rerank_async(requests, deadline=deadline)

    before = rec.recommend("u3", k=20, at=AT)
    first, version = before.item_ids[0], rec.version
    waits = Waits()
    with ThreadPoolExecutor(1) as pool:
        page = pool.submit(rec.recommend, "u3", k=20, at=AT, reranker=waits)
        assert began.wait(5)
        rec.update_items(pl.DataFrame({"item_id": [first], "title": ["another name"]}), withdraw=before.item_ids[1:3])
        go.set()
        answered = page.result(5)
    assert answered.version == version and answered.item_ids == before.item_ids[::-1]
    assert "another name" not in waits.asked[0].candidates[0].text
    after = Backwards()
    page_after = rec.recommend("u3", k=20, at=AT, reranker=after)
    assert not set(before.item_ids[1:3]) & set(after.asked[0].ids)
    assert page_after.version != version
    assert "another name" in next(item.text for item in after.asked[0].candidates if item.item_id == first)


def test_what_cannot_be_meant_is_refused(rec: Recommender) -> None:
    for fields, message in [
        ({"reranker": "first"}, "reranker must be a Reranker"),
        ({"reranker": Backwards}, "reranker must be a Reranker"),
        ({"rerank_ms": 5.0}, "give reranker too"),
        ({"reranker": Backwards(), "rerank_ms": 0}, "positive number of milliseconds"),
        ({"reranker": Backwards(), "rerank_ms": True}, "positive number of milliseconds"),
    ]:
        with pytest.raises(InputError, match=message):
            rec.recommend("u3", **fields)
    for settings, message in [
        ({"top": 0}, "top must be"),
        ({"weight": -1.0}, "weight must be"),
        ({"weight": float("nan")}, "weight must be"),
        ({"deadline_ms": 0.0}, "deadline_ms must be"),
        ({"history_events": 0}, "history_events must be"),
    ]:
        with pytest.raises(InputError, match=message):
            RerankChain(Backwards(), **settings)
    with pytest.raises(InputError, match="made of a Reranker"):
        RerankChain("first")  # type: ignore[arg-type]
    small = Recommender(rec.bundle, limits=Limits(candidates=50))
    with pytest.raises(InputError, match=r"num_reordered 60, more than the 50"):
        small.recommend("u3", candidates=20, reranker=RerankChain(Backwards(), top=60))


def test_a_weight_fuses_and_no_weight_asks_nobody(rec: Recommender) -> None:
    asked = Backwards()
    plain = rec.recommend("u3", k=8, at=AT)
    assert same(rec.recommend("u3", k=8, at=AT, reranker=RerankChain(asked, weight=0.0)), plain) and asked.asked == []
    heavy = rec.recommend("u3", k=8, at=AT, reranker=RerankChain(asked, top=8, weight=1e6))
    assert heavy.item_ids == plain.item_ids[::-1]
    light = rec.recommend("u3", k=8, at=AT, reranker=RerankChain(asked, top=8, weight=1e-9))
    assert light.item_ids == plain.item_ids
