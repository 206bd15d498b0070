"""Callers' words to internal numbers."""

from __future__ import annotations

from copy import copy

import numpy as np
import polars as pl
import pytest

from recsys import vocabulary as module
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


def by_polars(ids: pl.Series, values: pl.Series) -> list[int]:
    """The plain reference of a search for values of the ids' own type."""
    order = ids.arg_sort()
    ordered, wanted = ids.gather(order), values.fill_null(ids[0])
    place = ordered.search_sorted(wanted).clip(0, len(ids) - 1)
    return [
        row if is_found and value is not None else -1
        for row, is_found, value in zip(order.gather(place), ordered.gather(place) == wanted, values, strict=True)
    ]


@pytest.mark.parametrize("num_ids", [1, 2, 300])
@pytest.mark.parametrize("dtype", [pl.String, pl.Int8, pl.UInt8, pl.Int32, pl.Int64, pl.UInt64, pl.Int128])
def test_ids_are_found_where_a_sorted_column_has_them(dtype, num_ids):
    rng = np.random.default_rng(num_ids)
    low, high = (0, 255) if dtype == pl.String else pl.select(dtype.min(), dtype.max().alias("max")).row(0)
    low, high = max(low, 1 - 10**37), min(high, 10**37 - 1)  # longer ones are not read from text
    numbers = {low, high, *range(max(low, -60), min(high, 250)), *(low + int(p * (high - low)) for p in rng.random(99))}
    every = pl.Series(rng.permutation(np.array(sorted(numbers), dtype=object)).tolist(), dtype=pl.Int128).cast(dtype)
    ids = IdMap(every[:num_ids])
    values = pl.concat([every[::-1], every[:3], pl.Series([None], dtype=dtype)])
    for wanted in (values, values[:1], values[-1:], values[-4:], values[:0], values[-num_ids - 4 :]):
        truth = by_polars(ids.ids, wanted)
        assert ids.index(wanted).tolist() == truth
        assert ids.index(wanted.to_list()).tolist() == truth
        assert ids.index([str(value) for value in wanted]).tolist() == truth
    assert by_polars(ids.ids, every) == [*range(len(ids)), *[-1] * (len(every) - len(ids))]
    grown = IdMap(every[:num_ids]).grown(every[num_ids : num_ids + 40])
    assert grown.index(values).tolist() == by_polars(every[: num_ids + 40], values)


def test_ids_of_equal_hashes_are_told_apart(monkeypatch):
    ids = IdMap(pl.Series([5 + n * (2**61 - 1) for n in range(9)], dtype=pl.Int128))  # Python's hash of all is 5
    assert ids.index(ids.ids).tolist() == [ids.index([value])[0] for value in ids.ids] == list(range(9))
    assert ids.index([5 + 9 * (2**61 - 1)] * 6).tolist() == [-1] * 6
    monkeypatch.setattr(module, "hash", len, raising=False)
    names = [f"i{n}" for n in range(30)]
    text = IdMap(pl.Series(names[:12])).grown(pl.Series(names[12:29]))
    assert text.index(names).tolist() == [*range(29), -1]
    assert text.index(names[-2:]).tolist() == [28, -1]


def test_a_copy_in_another_process_hashes_text_anew(monkeypatch):
    ids = IdMap(pl.Series(["b", "a", "c"]))
    monkeypatch.setattr(module, "hash", lambda value: -ord(value), raising=False)
    assert ids.index(["a", "b", "x"]).tolist() == [-1, -1, -1]
    assert copy(ids).index(["a", "b", "x"]).tolist() == [1, 0, -1]


@pytest.mark.parametrize("ids", [[2**60, None, 2**60 + 1], [1, 3, 1], ["a", "b", "a"], ["a", None]])
def test_ids_that_are_missing_or_there_twice_are_refused(ids):
    held = IdMap(pl.Series(ids))
    with pytest.raises(ValueError, match="ids must be there and differ"):
        held.check_unique()
    assert held.index([None, 0, "x"] * 2).tolist() == [-1] * 6
    assert [ids[row] if row >= 0 else None for row in held.index(ids * 3)] == ids * 3


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
