"""What a reader remembers is never seen in its answers, only in what it asks for."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.history_sources import BundleHistories, LayeredHistories, SqliteHistories
from recsys.retrieval.history_sources.reader import HistoryReader
from recsys.retrieval.history_sources.reading import StoredHistory, read_histories
from recsys.retrieval.history_sources.source import Mark, Tail
from recsys.vocabulary import IdMap, Vocabulary

WORDS = Vocabulary(
    items=IdMap(pl.Series([f"i{i}" for i in range(6)])),
    actions=("click", "like"),
    surfaces=("", "home"),
    clock="real",
    max_timestamp=50,
)
ORDER = Vocabulary(WORDS.items, WORDS.actions, WORDS.surfaces, "order", 50)


class Watched(SqliteHistories):
    """Counts the events that it hands out."""

    num_read = 0

    def tails(self, user_ids: Sequence[Any], marks: Sequence[Mark | None]) -> list[Tail]:
        tails = super().tails(user_ids, marks)
        self.num_read += sum(len(tail.events) for tail in tails)
        return tails


def assert_same(left: StoredHistory | None, right: StoredHistory | None) -> None:
    assert (left is None) == (right is None)
    if left is not None and right is not None:
        assert left.num_strange_actions == right.num_strange_actions
        for name in ("item", "timestamp", "yes", "known", "surface", "time_known"):
            assert np.array_equal(getattr(left.history, name), getattr(right.history, name)), name


def clicks(*times: int | None, item: str = "i1") -> list[Event]:
    return [Event(item_id=item, actions="click", timestamp=time) for time in times]


USERS = ("a", "b", 3, "u1", "u2")
EVENTS = st.builds(
    Event,
    item_id=st.sampled_from(["i1", "i2", "new", "newer"]),
    actions=st.sampled_from(["click", "like", "", "dance", ("click", "dance")]),
    timestamp=st.one_of(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.none()),
    surface=st.sampled_from([None, "home", "moon"]),
    unknown=st.sampled_from([(), ("like",), ("sing",)]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(USERS), st.lists(EVENTS, min_size=1, max_size=3)),
        st.lists(st.sampled_from(USERS), max_size=4),
        st.just("forget"),
    ),
    max_size=14,
)


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


TWICE = [("a", [Event(item_id="new", actions="click", timestamp=1)]), ["a"], ("a", [Event(item_id="new", timestamp=1)])]
NO_TIME = [("a", clicks(None, 3)), ["a"], ("a", clicks(1, item="i2"))]


@settings(deadline=None, max_examples=25)
@example(steps=TWICE, max_events=1000, kind="real")  # one event of an item that the catalogue does not hold
@example(steps=NO_TIME, max_events=1000, kind="real")  # whose time depends on what comes later
@given(steps=STEPS, max_events=st.sampled_from([0, 70, 1000]), kind=st.sampled_from(["real", "order", "bundle"]))
def test_a_reader_says_what_the_source_says(
    steps: list[Any], max_events: int, kind: str, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("reader") / "events.sqlite"
    with SqliteHistories(path) as store:
        source: Any = store
        words = ORDER if kind == "order" else WORDS
        if kind == "bundle":
            source, words = LayeredHistories(BundleHistories(bundle), store), bundle.vocabulary
        reader = HistoryReader(source, words, max_events=max_events)
        for step in [*steps, list(USERS)]:
            if step == "forget":  # an operator's hand, not ours
                with sqlite3.connect(path) as database:
                    database.execute("DELETE FROM events WHERE place % 3 = 0 AND user = (SELECT min(user) FROM events)")
            elif isinstance(step, tuple):
                store.append(*step)
            else:
                for got, expected in zip(reader.read(step), read_histories(source, step, words), strict=True):
                    assert_same(got, expected)
                assert reader.num_events <= max_events


def test_a_returning_user_costs_the_new_events_only(tmp_path: Path) -> None:
    with Watched(tmp_path / "events.sqlite") as store:
        store.append("a", clicks(*range(1000)))
        reader = HistoryReader(store, WORDS)
        reader.read(["a", "b"])
        assert store.num_read == 1000 == reader.num_events
        reader.read(["a"])
        assert store.num_read == 1000
        store.append("a", clicks(2000, 1500, 3, item="i2"))
        (stored,) = reader.read(["a"])
        assert store.num_read == 1003 == reader.num_events
        assert_same(stored, read_histories(store, ["a"], WORDS)[0])


def test_the_users_asked_for_last_are_remembered(tmp_path: Path) -> None:
    with Watched(tmp_path / "events.sqlite") as store:
        for user in range(4):
            store.append(user, clicks(*range(10)))
        store.append("long", clicks(*range(100)))
        reader = HistoryReader(store, WORDS, max_events=3 * (10 + 32))  # a user takes as much as 32 events
        reader.read([0, 1, 2])
        reader.read([0])
        reader.read([3])  # 1 has to go
        reader.read(["long"])  # too long to be remembered at all
        assert (store.num_read, reader.num_events) == (140, 30)
        reader.read([2, 0, 3])
        assert store.num_read == 140
        reader.read([1])
        assert store.num_read == 150


def test_of_a_user_whom_the_store_forgot_nothing_is_remembered(tmp_path: Path) -> None:
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        for user in ("a", "b"):
            store.append(user, clicks(*range(10)))
        reader = HistoryReader(store, WORDS)
        reader.read(["a", "b"])
        store.forget("a")
        assert reader.read(["a", "b"])[0] is None
        assert (reader.num_events, list(reader._kept)) == (10, ["b"])


def test_people_with_an_event_each_are_bounded_too(tmp_path: Path) -> None:
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        reader = HistoryReader(store, WORDS, max_events=1000)
        for user in range(40):
            store.append(user, clicks(1))
            reader.read([user])
        assert reader.num_events == len(reader._kept) == 1000 // 33


def test_a_history_that_changed_behind_the_mark_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with Watched(path) as store:
        store.append("a", clicks(1, 2, 3))
        reader = HistoryReader(store, WORDS)
        reader.read(["a"])
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM events WHERE place = 1")
        (stored,) = reader.read(["a"])
        assert stored is not None and stored.history.timestamp.tolist() == [1, 3]
        with sqlite3.connect(path) as database:
            database.execute("UPDATE events SET body = '[\"i1\",7]' WHERE place = 2")
        (stored,) = reader.read(["a"])
        assert stored is not None and stored.history.timestamp.tolist() == [1, 7]
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM events")
        assert reader.read(["a"]) == [None]
        store.append("a", clicks(5, 6, 7, 8, item="i2"))
        (stored,) = reader.read(["a"])
        assert stored is not None and stored.history.item.tolist() == [2, 2, 2, 2]


def test_odd_users_are_named(tmp_path: Path) -> None:
    with SqliteHistories(tmp_path / "events.sqlite") as store, pytest.raises(InputError, match="user_id: an id is"):
        HistoryReader(store, WORDS).read([None])


def test_threads_share_a_reader(tmp_path: Path) -> None:
    """Every read sees at least what was appended before it began, in any interleaving."""
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        reader = HistoryReader(store, WORDS, max_events=170)

        def live(number: int) -> None:
            for step in range(15):
                store.append(number % 3, [Event(item_id=f"i{number % 6}", timestamp=number * 1000 + step)])
                (stored,) = reader.read([number % 3])
                assert stored is not None
                own = stored.history.timestamp // 1000 == number
                assert stored.history.timestamp[own].tolist() == [number * 1000 + s for s in range(step + 1)]

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(live, range(6)))
        for got, expected in zip(reader.read([0, 1, 2]), read_histories(store, [0, 1, 2], WORDS), strict=True):
            assert_same(got, expected)
