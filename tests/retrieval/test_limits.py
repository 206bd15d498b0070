"""What a request may hold: everything beyond is one clear line, quickly."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.errors import InputError, shown
from recsys.events import Event
from recsys.retrieval.limits import Limits
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.request import Request
from recsys.retrieval.rules import Boost, Where


@pytest.fixture(scope="module")
def rec(toy_bundle: Path) -> Recommender:
    return Recommender.load(toy_bundle)


def refused(rec: Recommender, match: str, **fields: Any) -> None:
    """The request ends in one line that fits, in seconds."""
    began = time.monotonic()
    with pytest.raises(InputError, match=match) as error:
        rec.recommend(**fields)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("k", [0, -1, True, 1.0, "10", None, float("nan")])
def test_k_must_be_a_positive_integer(rec: Recommender, k: Any):
    refused(rec, "k must be a positive integer", user_id="u1", k=k)


def test_a_list_longer_than_the_limit_is_refused(rec: Recommender):
    for k in (10_001, 10**9, 10**5000):
        refused(rec, r"k .* more than the 10,000 that are answered \(Limits.k\)", user_id="u1", k=k)
        with pytest.raises(InputError, match=r"Limits\.k"):
            rec.similar_items("i1", k)
    refused(rec, "Limits.candidates", user_id="u1", candidates=10**9, rank_by="like")
    assert len(rec.recommend("u1", k=10_000, exclude_history=False)) == 30


def test_a_million_events_are_refused_and_a_hundred_thousand_answered(rec: Recommender):
    event = Event(item_id="i1", actions="click", timestamp=1_700_000_000)
    refused(rec, r"hold 1000000, more than the 100,000 .* \(Limits.events\)", history=[event] * 10**6)
    refused(rec, "Limits.events", user_id="u1", new_events=[event] * 10**6)
    many = [Event(item_id=f"i{n % 29}", actions="click", timestamp=n) for n in range(100_000)]
    assert rec.recommend(history=many, k=3).item_ids == ["i29"]


def test_a_million_ids_are_read_and_more_are_refused(rec: Recommender):
    others = [f"other{n}" for n in range(10**6)]
    plain = rec.recommend("u1", k=5, at=1_702_000_000)
    assert rec.recommend("u1", k=5, at=1_702_000_000, exclude=others).item_ids == plain.item_ids
    assert (
        rec.recommend("u1", k=5, at=1_702_000_000, allow=[*others[1:], plain[0].item_id]).item_ids == plain.item_ids[:1]
    )
    for name in ("exclude", "allow"):
        refused(rec, f"{name} holds 1000001, .*Limits.ids", user_id="u1", **{name: [*others, "i1"]})
    refused(rec, "more than 10,000,000 ids", user_id="u1", exclude=itertools.repeat("i1"))


def test_limits_are_set_where_the_recommender_is_made(toy_bundle: Path):
    rec = Recommender.load(toy_bundle, limits=Limits(k=3, events=2, ids=1, text=4, retrievers=1))
    assert len(rec.recommend("u1", k=3)) == 3
    refused(rec, "Limits.k", user_id="u1", k=4)
    refused(rec, "Limits.events", history=[Event(item_id="i1")] * 3, k=1)
    refused(rec, "Limits.ids", user_id="u1", k=1, exclude=["a", "b"])
    refused(rec, "a rule Where names 2, .*Limits.ids", user_id="u1", k=1, rules=[Where("title", ["a", "b"])])
    refused(rec, "a rule Boost names 2, .*Limits.ids", user_id="u1", k=1, rules=[Boost(["i1", "i2"], 1.0)])
    refused(rec, r"event 0: item_id has length 5, .*Limits.text", history=[Event(item_id="i1234")], k=1)
    refused(rec, "Limits.text", user_id="u12345", k=1)
    refused(rec, "Limits.retrievers", user_id="u1", k=1, retrievers=("dense", "memory"))
    with pytest.raises(InputError, match=r"Limits\.k must be a positive integer, got 0"):
        Limits(k=0)


@pytest.mark.parametrize(
    "odd",
    [True, 1.5, b"i1", None, [["i1"]], {"a": 1}, float("nan"), 10**5000, -(10**40), "\ud800", "\0", object()],
    ids=lambda odd: type(odd).__name__,
)
def test_ids_that_are_none_are_unknown(rec: Recommender, odd: Any):
    expected = rec.recommend(k=5, at=1_702_000_000).item_ids
    assert rec.recommend(k=5, at=1_702_000_000, exclude=[odd]).item_ids == expected
    assert len(rec.recommend(k=5, at=1_702_000_000, allow=[odd])) == 0
    page = rec.recommend(history=[Event(item_id=odd)], k=5, at=1_702_000_000)
    assert page.notes == ("1 events are of items outside the catalogue",)
    with pytest.raises(InputError, match="is not in the catalogue"):
        rec.similar_items(odd)
    if odd is not None and not isinstance(odd, dict):
        assert "is not in this bundle" in rec.recommend(odd, at=1_702_000_000).notes[0]


@pytest.mark.parametrize(
    "odd", [1.5, float("nan"), float("inf"), "1700000000", True, [1], np.float64(3), 2**62, -(2**63)]
)
def test_times_that_are_none_are_refused(rec: Recommender, odd: Any):
    refused(rec, "timestamp", history=[Event(item_id="i1", timestamp=odd)])
    refused(rec, "at must be an integer number of seconds", user_id="u1", at=odd)


def test_times_to_come_and_times_in_reverse_are_answered(rec: Recommender):
    times = [2**62 - 1, 1_900_000_000, 0, -5, -(2**62) + 1]
    events = [Event(item_id=f"i{n}", timestamp=time) for n, time in enumerate(times)]
    for at in (-(2**62) + 1, 0, 2**62 - 1):
        page = rec.recommend(history=events, k=25, at=at)
        assert len(page) == 25
        assert all(np.isfinite(hit.score) and all(0 <= p <= 1 for p in hit.actions.values()) for hit in page)
    assert rec.recommend(history=events, at=0).hits == rec.recommend(history=events[::-1], at=0).hits


@pytest.mark.parametrize("odd", [5, None, b"click", ["click", None], [["click"]], {"click": 1}, "clikc", "a" * 900])
def test_actions_that_are_none_are_refused(rec: Recommender, odd: Any):
    refused(rec, "event 0 .item 'i1'.: actions", history=[Event(item_id="i1", actions=odd)])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"history": "i1"}, "history must be a sequence of events"),
        ({"history": [{"item_id": "i1"}]}, "element 0 must be a recsys.Event"),
        ({"history": iter([])}, "history must be a sequence of events"),
        ({"new_events": None}, "new_events must be a sequence"),
        ({"retrievers": 5}, "retrievers must be a sequence of names"),
        ({"retrievers": [None]}, "retrievers must be a sequence of names"),
        ({"retrievers": ("nobody",)}, "there is no retriever 'nobody'"),
        ({"exclude": 5}, "exclude must be a collection"),
        ({"exclude": np.array("i1")}, "exclude must be a collection"),
        ({"allow": np.array(5)}, "allow must be a collection"),
        ({"allow": {"i1": 1}}, "allow must be a collection"),
        ({"exclude": "i1"}, "exclude must be a collection"),
        ({"surface": 3}, "surface must be a name"),
        ({"history": [Event(item_id="i1", surface=3)]}, "surface must be a name"),
        ({"rank": "no"}, "rank must be True or False"),
        ({"exclude_history": 0}, "exclude_history must be True or False"),
        ({"rank_by": 3}, "rank_by must be an action or weights"),
        ({"rank_by": {"click": float("nan")}}, "must be a finite number, got nan"),
        ({"rank_by": {"click": 10**400}}, "must be a finite number"),
        ({"rank_by": {"click": "1"}}, "must be a finite number"),
        ({"rank_by": {1: 1.0}}, "1 is no name of an action"),
        ({"rank_by": "nothing"}, "not by 'nothing'"),
        ({"user_features": "x"}, "user_features must be columns by name"),
        ({"user_features": {"age": 3}}, "reads no column 'age' of users"),
    ],
)
def test_fields_of_other_types_are_refused(rec: Recommender, fields: dict[str, Any], match: str):
    refused(rec, match, **fields)


def test_a_retriever_named_twice_counts_once(rec: Recommender):
    once = rec.recommend("u1", at=1_702_000_000, retrievers=("dense", "memory"))
    assert rec.recommend("u1", at=1_702_000_000, retrievers=("dense", "memory", "dense", "dense")).hits == once.hits


def test_collections_of_every_kind_are_read_once_and_again(rec: Recommender):
    best = rec.recommend(k=3, at=0).item_ids
    for given in (tuple(best), set(best), iter(best), np.array(best), pl.Series(best), dict.fromkeys(best).keys()):
        request = Request(k=3, at=0, exclude=given)
        first, second = rec.recommend_batch([request]), rec.recommend_batch([request])
        assert first == second
        assert not set(first[0].item_ids) & set(best)


def test_what_is_no_request_is_refused(rec: Recommender):
    for odd in (5, "u1", None, ["u1"], {"K": 3}, {3: 3}):
        with pytest.raises(InputError, match="a request"):
            rec.recommend_batch([odd])


def test_many_exclusions_are_answered_in_portions(rec: Recommender, monkeypatch: pytest.MonkeyPatch):
    import recsys.retrieval.recommender as module

    requests = [Request(user_id=f"u{n}", at=0, exclude=[f"i{i}" for i in range(n)]) for n in range(20)]
    together = rec.recommend_batch(requests)
    monkeypatch.setattr(module, "MOST_EXCLUSIONS", 40)
    for ours, theirs in zip(rec.recommend_batch(requests), together, strict=True):
        assert ours.item_ids == theirs.item_ids
        assert ours.timings["batch_size"] < 20 == theirs.timings["batch_size"]


def test_quotes_of_odd_values_are_short_lines():
    for odd in (
        "x" * 10**6,
        10**5000,
        [10**5000],
        list(range(10**6)),
        "a\nb",
        pl.Series(range(99)),
        np.zeros((9, 9)),
        b"x" * 999,
    ):
        assert len(shown(odd)) < 100
        assert "\n" not in shown(odd)
