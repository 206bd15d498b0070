"""Callers' words to internal numbers."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys.errors import InputError
from recsys.events import Event
from recsys.vocabulary import IdMap, Vocabulary


def vocabulary(clock: str = "real") -> Vocabulary:
    return Vocabulary(IdMap(pl.Series(["b", "a", "c"])), ("buy", "click", "hide"), ("", "home"), clock, 900)


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.Int64, pl.UInt64])
def test_integer_ids_are_found_by_number_and_by_text(dtype):
    ids = IdMap(pl.Series([30, 7, 20], dtype=dtype))
    assert ids.index([7, "20", np.int64(30)]).tolist() == [1, 2, 0]
    assert ids.index([8, -1, 2**70, 10**40, None, True, 7.0, "007", "7 ", "x", "٧"]).tolist() == [-1] * 11
    assert ids.take([2, 0]) == [20, 30]


def test_text_ids_are_found_by_text_and_number():
    ids = IdMap(pl.Series(["7", "b", "é", ""]))
    assert ids.index(["é", 7, "B", "", None, "zz"]).tolist() == [2, 0, -1, 3, -1, -1]
    assert ids.index(["é", "\ud800", None, 7]).tolist() == [2, -1, -1, 0]  # half a surrogate pair is in no table
    assert [ids.own(value) for value in (8, "8", "\ud800", None, True)] == ["8", "8", None, None, None]
    assert ids.index(pl.Series(["b", None, "7"])).tolist() == [1, -1, 0]
    assert ids.index([]).tolist() == []
    assert IdMap(pl.Series([], dtype=pl.String)).index(["a"]).tolist() == [-1]


def test_events_are_ordered_by_time_and_equal_ones_united():
    history = vocabulary().history(
        [
            Event(item_id="a", actions="click", timestamp=5, unknown=["hide"]),
            Event(item_id="b", timestamp=3, surface="home"),
            Event(item_id="a", actions=["buy"], timestamp=5, surface="home"),
            Event(item_id="a", actions="click+hide", timestamp=6),
        ]
    )
    assert history.item.tolist() == [0, 1, 1]
    assert history.timestamp.tolist() == [3, 5, 6]
    assert history.yes.tolist() == [0, 0b011, 0b110]
    assert history.known.tolist() == [0b111, 0b111, 0b111]
    assert history.surface.tolist() == [1, 1, 0]
    assert history.time_known.all()


def test_unknown_actions_are_neither_yes_nor_no():
    history = vocabulary().history([Event(item_id="a", actions="click", unknown=("hide", "click"), timestamp=1)])
    assert history.yes.tolist() == [0b010]
    assert history.known.tolist() == [0b011]  # an action that happened is known, whatever else is said


def test_unknown_items_stay_events_of_their_own():
    history = vocabulary().history(
        [Event(item_id=name, actions="click", timestamp=4) for name in ("new", "newer", "new", 17)]
    )
    assert history.item.tolist() == [-1, -1, -1]


def test_events_without_a_time_happen_where_they_stand():
    words = vocabulary()
    history = words.history([Event(item_id="a"), Event(item_id="b", timestamp=50), Event(item_id="c")])
    assert history.item.tolist() == [1, 0, 2]
    assert history.timestamp.tolist() == [50, 50, 50]
    assert history.time_known.tolist() == [False, True, False]
    assert words.history([Event(item_id="a")]).timestamp.tolist() == [900]
    longer = words.history([Event(item_id="c"), Event(item_id="c", timestamp=40)], after=history)
    assert longer.item.tolist() == [2, 1, 0, 2, 2]
    assert longer.timestamp.tolist() == [40, 50, 50, 50, 50]


def test_a_history_may_be_continued_anywhere():
    """Events behind an earlier history give the history of all of them, however their times overlap."""
    rng, words = np.random.default_rng(0), vocabulary()
    for _ in range(200):
        times = rng.integers(0, 8, size=int(rng.integers(1, 12))).tolist()
        events = [
            Event(
                item_id="abc"[int(rng.integers(3))], timestamp=time, actions=["buy", "click", ""][int(rng.integers(3))]
            )
            for time in times
        ]
        cut = int(rng.integers(len(events)))
        whole, continued = words.history(events), words.history(events[cut:], after=words.history(events[:cut]))
        for name in ("item", "timestamp", "yes", "known", "surface", "time_known"):
            assert np.array_equal(getattr(whole, name), getattr(continued, name)), name


def test_places_are_counted_where_there_is_no_clock():
    words = vocabulary("order")
    history = words.history([Event(item_id="a"), Event(item_id="b"), Event(item_id="a")])
    assert history.timestamp.tolist() == [0, 1, 2]
    assert history.item.tolist() == [1, 0, 1]
    assert words.history([Event(item_id="c")], after=history).timestamp.tolist() == [0, 1, 2, 3]


def test_wrong_events_are_named():
    with pytest.raises(InputError, match=r"event 1 \(item 'b'\): actions: 'buys' is no action.*buy, click, hide"):
        vocabulary().history([Event(item_id="a"), Event(item_id="b", actions="click+buys")])
    with pytest.raises(InputError, match=r"event 0 \(item 'a'\): timestamp must be an integer, got '5'"):
        vocabulary().history([Event(item_id="a", timestamp="5")])  # type: ignore[arg-type]
    assert vocabulary().history([Event(item_id="a", actions="Exposure")]).yes.tolist() == [0]
    assert [vocabulary().surface_index(name) for name in (None, "home", "never seen")] == [0, 1, 0]
