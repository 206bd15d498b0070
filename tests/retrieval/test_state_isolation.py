"""Nobody's state is readable through another's request, whatever names, keys and histories are chosen.

Every page is compared with that of a recommender without a memory; two histories of one length are told apart by
nothing but their hash.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.events import Event
from recsys.retrieval.history_sources import SqliteHistories, over_bundle
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender

AT = 1_702_000_000
ALICE = [Event(item_id=f"i{n}", actions="like", timestamp=AT - 90 + n, surface="home") for n in range(8)]
BOB = [Event(item_id=f"i{n + 12}", actions="hide", timestamp=AT - 90 + n, surface="mail") for n in range(8)]
ABOUT: dict[str, Any] = {"at": AT, "k": 9, "retrievers": ("dense", "generative"), "exclude_history": False}


@pytest.fixture(scope="module")
def bundles(serving_worlds: Any, other_weights: Path) -> list[Path]:
    """Of the same items and people, and two models."""
    return [serving_worlds[0].bundle, other_weights]


def pair(path: Path, **settings: Any) -> tuple[Recommender, Recommender]:
    """One that keeps states, one that keeps none."""
    ours = Recommender.load(path, state_bytes=10**6, **settings)
    return ours, Recommender.load(path, state_bytes=0, **settings)


def numbers(page: Page) -> list[float]:
    return [number for hit in page for number in (hit.score, *hit.actions.values())]


def assert_same(ours: Page, theirs: Page) -> None:
    assert ours.item_ids == theirs.item_ids
    assert numbers(ours) == pytest.approx(numbers(theirs), abs=1e-5)


def check(rec: Recommender, plain: Recommender, **fields: Any) -> None:
    assert_same(rec.recommend(**ABOUT, **fields), plain.recommend(**ABOUT, **fields))


def variants(events: list[Event]) -> list[list[Event]]:
    """Histories of the same length that differ in one thing, and continuations of these."""
    last = events[-1]
    others = [
        replace(last, item_id="i29"),
        replace(last, actions="hide"),
        replace(last, surface="mail"),
        replace(last, timestamp=AT - 70),
        replace(last, unknown=["click"]),
    ]
    changed = [[*events[:-1], other] for other in others] + [[replace(events[0], item_id="i20"), *events[1:]]]
    more = Event(item_id="i3", actions="click", timestamp=AT - 5)
    return [*changed, events[:-1], *([*one, more] for one in changed), [*events, more], events]


def test_a_key_shows_nothing_of_the_history_kept_under_it(bundles: list[Path]) -> None:
    rec, plain = pair(bundles[0])
    for key in ("alice", "u1", 7, "7"):
        for history in (ALICE, BOB, ALICE, *variants(ALICE), *variants(BOB)):
            check(rec, plain, history=history, cache_key=key)
    assert rec.state_counts.hits + rec.state_counts.appended > 0
    for one, other in ((ALICE, BOB), (ALICE, variants(ALICE)[0])):  # they do differ
        pages = [plain.recommend(**ABOUT, history=history) for history in (one, other)]
        assert max(abs(a - b) for a, b in zip(*map(numbers, pages), strict=True)) > 1e-3


def test_requests_of_one_batch_and_of_many_threads_fight_for_a_key(bundles: list[Path]) -> None:
    rec, plain = pair(bundles[0])
    requests = [
        {**ABOUT, "history": history, "cache_key": "shared"} for history in (ALICE, BOB, *variants(ALICE), ALICE, BOB)
    ]
    expected = [plain.recommend(**fields) for fields in requests]
    for _ in range(2):
        for ours, theirs in zip(rec.recommend_batch(requests), expected, strict=True):
            assert_same(ours, theirs)
    places = [place for turn in range(4) for place in range(turn, len(requests))]
    with ThreadPoolExecutor(8) as pool:
        pages = pool.map(lambda place: rec.recommend(**requests[place]), places)
        for place, page in zip(places, pages, strict=True):
            assert_same(page, expected[place])
    assert rec.states.num_states == 1


def test_a_users_name_as_anothers_key(bundles: list[Path]) -> None:
    rec, plain = pair(bundles[0])
    check(rec, plain, user_id="u1")
    check(rec, plain, history=BOB, cache_key="u1")
    check(rec, plain, user_id="u1")
    check(rec, plain, user_id="u2", cache_key="u1")
    check(rec, plain, user_id="u1", new_events=ALICE)
    check(rec, plain, user_id="u8", new_events=ALICE, cache_key="u1")
    check(rec, plain, user_id="stranger", cache_key="u1")


def test_an_equal_history_brings_no_columns_of_its_user(bundles: list[Path]) -> None:
    """The events are the same, so the state may be shared; what is known of the person is not in it."""
    rec, plain = pair(bundles[0])
    for city in ("Rome", "Oslo", None, "Rome"):
        features = {} if city is None else {"city": city}
        check(rec, plain, history=ALICE, cache_key="shared", user_features=features)
    assert rec.state_counts.hits == 3
    pages = [plain.recommend(**ABOUT, history=ALICE, user_features={"city": city}) for city in ("Rome", "Oslo")]
    assert numbers(pages[0]) != pytest.approx(numbers(pages[1]), abs=1e-3)


def test_numbers_and_texts_are_different_people(bundles: list[Path], tmp_path: Path) -> None:
    """As keys always; as users unless the bundle's users are texts, where both name one person, who has one state."""
    rec, plain = pair(bundles[0])
    check(rec, plain, history=ALICE, cache_key=7)
    check(rec, plain, history=BOB, cache_key="7")
    check(rec, plain, history=ALICE, cache_key=7)
    assert rec.states.num_states == 2
    assert rec.state_counts.hits == 1
    with closing(SqliteHistories(tmp_path / "events.sqlite")) as store:
        rec, plain = pair(bundles[0], history_source=over_bundle(store))
        rec.append_events(7, ALICE)
        rec.append_events("8", BOB)
        for user in (7, "7", 8, "8"):
            check(rec, plain, user_id=user)
        assert rec.states.num_states == 2
        rec.states.forget(["7", "8"])
        assert rec.states.num_states == 0


def test_forgotten_events_are_in_no_answer(bundles: list[Path], tmp_path: Path) -> None:
    with closing(SqliteHistories(tmp_path / "events.sqlite")) as store:
        rec, plain = pair(bundles[0], history_source=over_bundle(store))
        empty = plain.recommend("new", **ABOUT)
        rec.append_events("new", ALICE)
        check(rec, plain, user_id="new")
        assert numbers(plain.recommend("new", **ABOUT)) != pytest.approx(numbers(empty), abs=1e-3)
        store.forget("new")  # the state is still kept, and of no use
        assert rec.states.num_states == 1
        assert_same(rec.recommend("new", **ABOUT), empty)
        rec.append_events("new", BOB)
        check(rec, plain, user_id="new")
        rec.states.forget(["new"])
        assert rec.states.num_states == 0
        check(rec, plain, user_id="new")


def test_states_of_one_bundle_answer_nothing_of_another(bundles: list[Path]) -> None:
    rec = Recommender.load(bundles[0], state_bytes=10**6)
    plain = [Recommender.load(path, state_bytes=0) for path in bundles]
    for step, number in enumerate((0, 1, 0, 1, 0)):
        if step:
            rec.swap(bundles[number])
        for history, key in ((ALICE, "alice"), (BOB, "bob"), (BOB, "alice"), (ALICE, "alice")):
            check(rec, plain[number], history=history, cache_key=key)
        check(rec, plain[number], user_id="u1", cache_key="bob")
    pages = [one.recommend(**ABOUT, history=ALICE) for one in plain]
    assert numbers(pages[0]) != pytest.approx(numbers(pages[1]), abs=1e-2)
