"""What changes of the catalogue cost those whose states are kept: only histories that hold a changed item are encoded
anew, and no answer is another than without kept states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recsys.events import Event
from recsys.retrieval.recommender import Recommender
from recsys.state_store import StoreCounts

AT = 1_702_000_000
HISTORIES = {
    "holds i3": ["i3", "i5", "i7"],
    "holds i3 last": ["i9", "i10", "i11", "i3"],
    "holds x0": ["i5", "x0"],
    "holds neither": ["i1", "i2", "i5", "i6", "i8"],
}
RETRIEVERS = ("dense", "generative")


def requests() -> list[dict[str, Any]]:
    return [
        {
            "history": [Event(item_id=i, actions="like", timestamp=AT - 90 + n) for n, i in enumerate(items)],
            "cache_key": key,
            "at": AT,
            "k": 8,
            "retrievers": RETRIEVERS,
        }
        for key, items in HISTORIES.items()
    ]


def encoded_anew(rec: Recommender, plain: Recommender) -> set[str]:
    """Whose histories were not taken from what is kept; their pages are compared on the way."""
    anew = set()
    for fields in requests():
        before = rec.state_counts
        ours, theirs = rec.recommend(**fields), plain.recommend(**fields)
        after, length = rec.state_counts, len(fields["history"])
        assert ours.item_ids == theirs.item_ids, fields["cache_key"]
        for one, other in zip(ours, theirs, strict=True):
            assert (one.score, *one.actions.values()) == pytest.approx((other.score, *other.actions.values()), abs=1e-5)
        if after.encoded > before.encoded:
            anew.add(fields["cache_key"])
            assert after == before + StoreCounts(encoded=1, tokens_encoded=length)
        else:
            assert after == before + StoreCounts(hits=1, tokens_reused=length)
    return anew


def changed(path: Path) -> tuple[Recommender, Recommender]:
    """One that keeps the states of all, one that keeps none."""
    rec, plain = Recommender.load(path, state_bytes=10**6), Recommender.load(path, state_bytes=0)
    assert encoded_anew(rec, plain) == set(HISTORIES)
    assert encoded_anew(rec, plain) == set()
    return rec, plain


def test_only_histories_of_a_changed_item_are_encoded_anew(serving_worlds: Any) -> None:
    pair = changed(serving_worlds[0].bundle)
    steps: list[tuple[dict[str, Any], set[str]]] = [
        ({"items": [{"item_id": "i3", "text": "a steel ship of wood"}]}, {"holds i3", "holds i3 last"}),
        ({"items": [{"item_id": "i12", "text": "a red ship"}]}, set()),
        ({"withdraw": ["i5", "i3"]}, set()),
        ({"items": [{"item_id": "i3", "vec": [2.0, 0.0, -1.0, 0.5]}]}, {"holds i3", "holds i3 last"}),
        ({"restore": ["i5"]}, set()),
        ({"items": [{"item_id": "i7", "price": 3.5}]}, set()),  # which the encoder does not read
        ({"items": [{"item_id": "x0", "text": "red", "vec": [0.0, 1.0, 0.0, 0.0]}]}, {"holds x0"}),
        ({"items": [{"item_id": "x1", "text": "red", "vec": None}], "withdraw": ["x0"]}, set()),
        ({"items": [{"item_id": "x0", "text": "blue wooden car"}], "restore": ["x0", "i3"]}, {"holds x0"}),
    ]
    for change, expected in steps:
        for rec in pair:
            rec.update_items(**change)
        assert encoded_anew(*pair) == expected, change
        assert encoded_anew(*pair) == set()


def test_a_changed_item_is_noticed_by_histories_that_go_on(serving_worlds: Any) -> None:
    rec, plain = changed(serving_worlds[0].bundle)
    for one in (rec, plain):
        one.update_items([{"item_id": "i3", "text": "large large large"}])
    more = [Event(item_id="i20", actions="click", timestamp=AT - 1)]
    for fields, appended in zip(requests(), (False, False, True, True), strict=True):
        before = rec.state_counts
        ours, theirs = (one.recommend(**fields, new_events=more) for one in (rec, plain))
        assert ours.item_ids == theirs.item_ids
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
        assert rec.state_counts.appended - before.appended == appended
        assert rec.state_counts.encoded - before.encoded == (not appended)


def test_numbers_given_out_anew_after_an_exchange_bring_no_state_back(serving_worlds: Any) -> None:
    """x0 and x1 get the same internal number in turn, under one model."""
    path = serving_worlds[0].bundle
    rec = Recommender.load(path, state_bytes=10**6)
    for name, text in (("x0", "red red red"), ("x1", "steel ship"), ("x0", "blue")):
        row = {"item_id": name, "text": text, "vec": [1.0, 0.0, float(len(text)), 0.0]}
        plain = Recommender.load(path, state_bytes=0)
        for one in (rec, plain):
            one.update_items([row])
        about: dict[str, Any] = {"at": AT, "k": 8, "cache_key": "shared"}
        history = [Event(item_id=item, actions="like", timestamp=AT - 5) for item in ("i1", name)]
        ours, theirs = (one.recommend(history=history, **about) for one in (rec, plain))
        assert ours.item_ids == theirs.item_ids
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
        rec.swap(path, keep_updates=False)
