"""A recommender on a source of histories: answers as of histories given by hand, appends that count, clear failures."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import Closed, InputError, SourceUnavailable
from recsys.events import Event
from recsys.retrieval.history_sources import BundleHistories, HistorySource, SqliteHistories, over_bundle
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.request import Request

AT = 1_702_000_000


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="module")
def rec(bundle: Bundle) -> Recommender:
    return Recommender(bundle, clock=lambda: AT + 0.5)


@pytest.fixture(scope="module")
def bare(toy_model: Any, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle without histories."""
    from recsys.pipelines.export import export_model

    path = tmp_path_factory.mktemp("bare") / "bundle"
    export_model(toy_model, toy_dataset, path)
    return Bundle.open(path)


class Counting:
    """A source that counts its reads, and may fail."""

    def __init__(self, inner: HistorySource) -> None:
        self.inner, self.reads, self.error = inner, list[list[Any]](), None

    def events(self, user_ids: Sequence[Any]) -> list[list[Event] | None]:
        self.reads.append(list(user_ids))
        if self.error is not None:
            raise self.error
        return self.inner.events(user_ids)

    def append(self, user_id: Any, events: Sequence[Event]) -> None:
        self.inner.append(user_id, events)

    def close(self) -> None:
        self.inner.close()

    error: Exception | None


def assert_same(left: Page, right: Page, *, notes: bool = True) -> None:
    assert left.item_ids == right.item_ids
    assert left.num_reachable == right.num_reachable
    assert not notes or left.notes == right.notes
    assert [hit.score for hit in left] == pytest.approx([hit.score for hit in right], abs=1e-5)
    for one, other in zip(left, right, strict=True):
        assert one.actions == pytest.approx(other.actions, abs=1e-5)


def test_a_store_answers_as_histories_by_hand(bundle: Bundle, bare: Bundle, rec: Recommender, tmp_path: Path) -> None:
    """Moved into a store, the bundle's own users get the bundle's own answers, whatever bundle reads them."""
    users = [f"u{row}" for row in range(12)]
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        for user, events in zip(users, BundleHistories(bundle).events(users), strict=True):
            assert events is not None
            store.append(user, events)
        counting = Counting(store)
        for served in (bundle, bare):
            ours = Recommender(served, history_source=counting)
            requests = [Request(user_id=user, at=AT, retrievers=("dense", "memory")) for user in users]
            for page, expected in zip(ours.recommend_batch(requests), rec.recommend_batch(requests), strict=True):
                assert_same(page, expected)
        assert counting.reads == [users, users]  # one read a batch
        stranger = Recommender(bare, history_source=store).recommend("nobody", at=AT)
        assert stranger.notes == ("no event of user 'nobody' is stored; answered as for a new user",)
        assert_same(stranger, rec.recommend(at=AT), notes=False)


def test_a_store_over_the_bundle_continues_it(bundle: Bundle, rec: Recommender, tmp_path: Path) -> None:
    first, second = Event(item_id="i29", actions="like", timestamp=AT - 50), Event(item_id="i28", timestamp=AT - 20)
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        ours = Recommender(bundle, history_source=over_bundle(store), clock=lambda: AT + 0.5)
        assert_same(ours.recommend("u7"), rec.recommend("u7"))
        ours.append_events("u7", [first])
        ours.append_events("u7", [second, first])
        ours.append_events("new", [first])
        assert_same(ours.recommend("u7"), rec.recommend("u7", new_events=[first, second]))
        assert_same(ours.recommend("new"), rec.recommend(history=[first]))
        assert "i29" not in ours.recommend("new", k=30).item_ids
        both = ours.recommend("u7", new_events=[Event(item_id="i27", timestamp=AT - 10)])
        assert_same(both, rec.recommend("u7", new_events=[first, second, Event(item_id="i27", timestamp=AT - 10)]))
        assert_same(ours.recommend("u8"), rec.recommend("u8"))
        assert ours.recommend("nobody").notes == ("no event of user 'nobody' is stored; answered as for a new user",)
    with SqliteHistories(tmp_path / "events.sqlite") as store:  # another process, later
        again = Recommender.load(bundle.path, history_source=over_bundle(store))
        assert_same(again.recommend("u7", at=AT), rec.recommend("u7", new_events=[first, second], at=AT))


def test_an_appended_event_without_a_time_happened_now(bundle: Bundle, rec: Recommender, tmp_path: Path) -> None:
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        ours = Recommender(bundle, history_source=over_bundle(store), clock=lambda: AT + 0.5)
        ours.append_events("u7", [Event(item_id="i1", actions="click")])
        assert store.events(["u7"]) == [[Event(item_id="i1", actions="click", timestamp=AT)]]
        with pytest.raises(InputError, match="event 0: must be an Event"):
            ours.append_events("u7", ["i1"])  # type: ignore[list-item]
        with pytest.raises(InputError, match="events must be a sequence of Event"):
            ours.append_events("u7", 3)  # type: ignore[arg-type]


def test_words_of_another_bundle_stay_events_with_a_note(bundle: Bundle, rec: Recommender, tmp_path: Path) -> None:
    strange = Event(item_id="i3", actions="click+dance", timestamp=AT - 9, surface="moon")
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        ours = Recommender(bundle, history_source=store)
        ours.append_events("a", [strange, Event(item_id="not yet", actions="like", timestamp=AT - 5)])
        page = ours.recommend("a", at=AT)
        known = [
            Event(item_id="i3", actions="click", timestamp=AT - 9),
            Event(item_id="?", actions="like", timestamp=AT - 5),
        ]
        assert_same(page, rec.recommend(history=known, at=AT), notes=False)
        assert page.notes == (
            "1 stored events name actions outside this bundle",
            "1 events are of items outside the catalogue",
        )


def test_users_of_a_bundle_are_found_by_text_or_number(
    toy_frames: dict[str, Any], toy_model: Any, tmp_path: Path
) -> None:
    """Ids reach a store in the type of the bundle's users, so that "7" of a web address is user 7 of the table."""
    from recsys.pipelines.export import export_model
    from recsys.pipelines.prepare.build import prepare_frames

    frame = toy_frames["interactions"].with_columns(pl.col("user_id").str.slice(1).cast(pl.Int64))
    dataset = prepare_frames(interactions=frame, items=toy_frames["items"], output=tmp_path / "data")
    export_model(toy_model, dataset, tmp_path / "bundle", histories=True)
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        ours = Recommender.load(tmp_path / "bundle", history_source=over_bundle(store))
        new = [Event(item_id="i3", actions="like", timestamp=AT - 5)]
        ours.append_events("7", new)
        ours.append_events("1234", new)
        ours.append_events("a guest", new)
        assert store.events([7, "7", 1234, "a guest"]) == [new, None, new, new]
        assert_same(ours.recommend("7", at=AT), ours.recommend(7, at=AT))
        frame = ours.recommend_frame(["7", 1234], k=2, at=AT)
        assert frame["user_id"].to_list() == [7, 7, 1234, 1234]
        with pytest.raises(InputError, match="user_id: an id is an integer or a string"):
            ours.recommend(7.5)


def test_frames_take_users_of_the_store(bundle: Bundle, bare: Bundle, rec: Recommender, tmp_path: Path) -> None:
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        store.append("new", [Event(item_id="i3", actions="like", timestamp=AT - 5)])
        over = Recommender(bundle, history_source=over_bundle(store))
        assert over.recommend_frame(k=2, at=AT).equals(rec.recommend_frame(k=2, at=AT))
        alone = Recommender(bare, history_source=store)
        assert alone.user_ids.len() == 0
        frame = alone.recommend_frame(["new"], k=3, at=AT)
        assert frame.equals(over.recommend_frame(["new"], k=3, at=AT))
        assert frame["item_id"].to_list() == alone.recommend("new", k=3, at=AT).item_ids
        with pytest.raises(InputError, match="holds no histories"):
            alone.recommend_frame()


def test_a_source_that_fails_is_an_error_of_those_who_need_it(bundle: Bundle, rec: Recommender, tmp_path: Path) -> None:
    store = SqliteHistories(tmp_path / "events.sqlite")
    counting = Counting(store)
    ours = Recommender(bundle, history_source=counting)
    requests = [Request(user_id="u1", at=AT), Request(at=AT), Request(user_id=1.5, at=AT), Request(at=AT, rank_by="x")]
    counting.error = SourceUnavailable("the disk is full")
    gone, fine, odd, bad = ours.recommend_each(requests)
    assert isinstance(gone, SourceUnavailable) and isinstance(fine, Page)
    assert_same(fine, rec.recommend(at=AT))
    assert isinstance(odd, InputError) and "user_id: an id is" in str(odd)
    assert isinstance(bad, InputError) and "not by 'x'" in str(bad)
    with pytest.raises(SourceUnavailable, match="the disk is full"):
        ours.recommend_batch(requests)
    counting.error = None
    assert isinstance(ours.recommend_each(requests)[0], Page)
    store.close()
    with pytest.raises(Closed, match="was closed"):
        ours.recommend("u1")
    assert ours.recommend_each([]) == []


def test_a_bundle_alone_takes_no_events(rec: Recommender, bare: Bundle) -> None:
    with pytest.raises(InputError, match=r"are read-only.*over_bundle\(SqliteHistories"):
        rec.append_events("u1", [Event(item_id="i1")])
    with pytest.raises(InputError, match="holds no histories"):
        Recommender(bare).append_events("u1", [Event(item_id="i1")])


def test_threads_see_every_acknowledged_event(bundle: Bundle, tmp_path: Path) -> None:
    """Each thread appends to its own user and finds the item gone from the next page."""
    with SqliteHistories(tmp_path / "events.sqlite") as store:
        ours = Recommender(bundle, history_source=over_bundle(store))

        def live(number: int) -> None:
            user = f"guest {number}"
            for step in range(8):
                page = ours.recommend(user, k=30, at=AT, rank=False)
                assert page.num_reachable == 30 - step
                ours.append_events(user, [Event(item_id=page[number].item_id, timestamp=AT - 100 + step)])
                after = ours.recommend(user, k=30, at=AT, rank=False)
                assert page[number].item_id not in after.item_ids

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(live, range(8)))


@pytest.mark.parametrize("layered", [False, True])
def test_one_users_damaged_events_concern_nobody_else(
    bundle: Bundle, rec: Recommender, tmp_path: Path, layered: bool
) -> None:
    path = tmp_path / "events.sqlite"
    with SqliteHistories(path) as store:
        ours = Recommender(bundle, history_source=over_bundle(store) if layered else store)
        for user in ("u1", "u2"):
            ours.append_events(user, [Event(item_id="i3", actions="like", timestamp=AT - 9)])
        with sqlite3.connect(path) as database:
            database.execute("UPDATE events SET body = 'x' WHERE user = (SELECT user FROM users WHERE id = '\"u1\"')")
        asked = [Request(user_id=user, at=AT) for user in ("u2", "u1", "nobody")]
        first, damaged, last = ours.recommend_each(asked)
        assert isinstance(first, Page)
        assert isinstance(damaged, SourceUnavailable) and "holds events that cannot be read" in str(damaged)
        assert first.item_ids == ours.recommend("u2", at=AT).item_ids and isinstance(last, Page)
        with pytest.raises(SourceUnavailable, match="cannot be read"):
            ours.recommend_batch(asked)


def test_a_source_that_is_away_is_not_asked_for_each_user_again(bundle: Bundle) -> None:
    source = Counting(BundleHistories(bundle))
    source.error = SourceUnavailable("away")  # type: ignore[assignment]
    results = Recommender(bundle, history_source=source).recommend_each([Request(user_id="u1"), Request(user_id="u2")])
    assert [str(result) for result in results] == ["away", "away"] and source.reads == [["u1", "u2"]]
