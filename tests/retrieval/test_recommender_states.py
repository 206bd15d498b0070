"""Kept states change what a request costs, never what it returns."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Event
from recsys.pipelines.export import export_model
from recsys.retrieval.history_sources import SqliteHistories, over_bundle
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.state_store import StoreCounts

AT = 1_710_000_000


def assert_same(left: Page, right: Page) -> None:
    assert left.item_ids == right.item_ids
    assert [hit.retriever for hit in left] == [hit.retriever for hit in right]
    assert (left.num_reachable, left.notes) == (right.num_reachable, right.notes)
    assert [hit.score for hit in left] == pytest.approx([hit.score for hit in right], abs=1e-5)
    for one, other in zip(left, right, strict=True):
        assert one.actions == pytest.approx(other.actions, abs=1e-5)


def returning_users(retrievers: tuple[str, ...], rounds: int, seed: int) -> list[list[dict[str, Any]]]:
    """Batches of requests of users who come back with more events, some of them under a key of their own."""
    draw, batches = random.Random(seed), []
    happened: dict[str, list[Event]] = {}
    for turn in range(rounds):
        batch: list[dict[str, Any]] = []
        for _ in range(draw.randrange(1, 5)):
            user = f"u{draw.randrange(4)}"
            events = happened.setdefault(user, [])
            for _ in range(draw.choice([0, 1, 1, 2])):
                when, surface = AT + 100 * turn + len(events), draw.choice(["home", "mail", None])
                action = draw.choice(["click", "like", "", "hide"])
                events.append(Event(item_id=f"i{draw.randrange(32)}", actions=action, timestamp=when, surface=surface))
            about: dict[str, Any] = {"k": 7, "at": AT + 10**6, "retrievers": retrievers, "rank": draw.random() < 0.7}
            if draw.random() < 0.3:
                batch.append({**about, "history": list(events), "cache_key": draw.choice([user, "shared", None])})
            else:
                batch.append({**about, "user_id": user, "new_events": list(events)})
        batches.append(batch)
    return batches


def compare(path: Path, retrievers: tuple[str, ...], rounds: int, state_bytes: int) -> Recommender:
    keeps, plain = Recommender.load(path, state_bytes=state_bytes), Recommender.load(path, state_bytes=0)
    for batch in returning_users(retrievers, rounds, seed=rounds):
        for ours, theirs in zip(keeps.recommend_batch(batch), plain.recommend_batch(batch), strict=True):
            assert_same(ours, theirs)
    assert plain.state_counts.hits == plain.state_counts.appended == plain.states.num_states == 0
    return keeps


@pytest.mark.parametrize("state_bytes", [20_000, 10**7])
def test_pages_of_kept_states_are_those_of_fresh_ones(state_bytes: int, toy_bundle: Path) -> None:
    counts = compare(toy_bundle, ("dense", "memory"), 12, state_bytes).state_counts
    assert counts.hits > 0
    assert counts.appended > 0
    assert (counts.evicted > 0) == (state_bytes == 20_000)


def test_retrievers_that_read_keys_and_values_find_the_same(
    code_model: Any, toy_dataset: Dataset, tmp_path: Path
) -> None:
    export_model(code_model, toy_dataset, tmp_path / "bundle", histories=True)
    retrievers = Recommender.load(tmp_path / "bundle", state_bytes=0).retrievers
    assert {"dense", "generative", "parallel", "set"} <= set(retrievers)
    assert compare(tmp_path / "bundle", retrievers, 6, 10**7).state_counts.appended > 0


def test_a_returning_user_pays_for_new_events_alone(toy_bundle: Path, toy_dataset: Dataset) -> None:
    rec = Recommender.load(toy_bundle, state_bytes=10**6)
    short = min(range(40), key=lambda user: len(toy_dataset.events.history(user)))
    user_id, length = toy_dataset.user_ids[short], len(toy_dataset.events.history(short))
    event = Event(item_id="i3", actions="like", timestamp=AT)
    rec.recommend(user_id, at=AT)
    rec.recommend(user_id, at=AT + 5)
    rec.recommend(user_id, new_events=[event], at=AT + 9)
    assert rec.state_counts == StoreCounts(1, 1, 1, tokens_encoded=length + 1, tokens_reused=2 * length)
    rec.recommend(history=[event], at=AT)
    assert rec.states.num_states == 1
    rec.recommend(history=[event], at=AT, cache_key="session 5")
    assert rec.states.num_states == 2
    rec.recommend(history=[event], at=AT, cache_key="session 5")
    assert rec.state_counts.hits == 2
    rec.states.forget([user_id, "session 5"])
    assert rec.states.num_states == 0


def test_events_in_a_store_continue_a_kept_state(toy_bundle: Path, tmp_path: Path) -> None:
    with closing(SqliteHistories(tmp_path / "events.sqlite")) as store:
        rec = Recommender.load(toy_bundle, state_bytes=10**6, history_source=over_bundle(store))
        plain = Recommender.load(toy_bundle, state_bytes=0, history_source=over_bundle(store))
        for turn in range(5):
            rec.append_events("u2", [Event(item_id=f"i{turn}", actions="like", timestamp=AT + turn)])
            assert_same(rec.recommend("u2", at=AT + 50), plain.recommend("u2", at=AT + 50))
    assert rec.state_counts.appended > 0
    assert rec.states.num_states == 1


def test_one_users_key_shows_nothing_of_another(toy_bundle: Path) -> None:
    rec, plain = Recommender.load(toy_bundle, state_bytes=10**6), Recommender.load(toy_bundle, state_bytes=0)
    others = [Event(item_id=f"i{n}", actions="like", timestamp=AT + n) for n in range(8)]
    for history in (others, [], others[:3], [*others[:7], others[0]], others[4:]):
        about = {"history": history, "at": AT + 50, "k": 9}
        assert_same(rec.recommend(**about, cache_key="u1"), plain.recommend(**about))
    assert_same(rec.recommend("u1", at=AT), plain.recommend("u1", at=AT))


def test_a_table_of_many_users_drives_no_state_out(toy_bundle: Path) -> None:
    rec = Recommender.load(toy_bundle, state_bytes=10**6)
    rec.recommend("u1", at=AT)
    frame = rec.recommend_frame(k=3, at=AT)
    assert frame["user_id"].n_unique() == 40
    assert rec.states.num_states == 1


def test_threads_share_states(toy_bundle: Path) -> None:
    rec, plain = Recommender.load(toy_bundle, state_bytes=30_000), Recommender.load(toy_bundle, state_bytes=0)
    batches = [batch for seed in range(4) for batch in returning_users(("dense",), 5, seed)]
    expected = [plain.recommend_batch(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for pages, right in zip(pool.map(rec.recommend_batch, batches), expected, strict=True):
            for one, other in zip(pages, right, strict=True):
                assert_same(one, other)


def test_int8_states_keep_the_list_and_move_probabilities_little(toy_bundle: Path) -> None:
    rec = Recommender.load(toy_bundle, state_bytes=10**6, state_storage="int8")
    plain = Recommender.load(toy_bundle, state_bytes=0)
    for _ in range(2):
        page, right = rec.recommend("u7", at=AT), plain.recommend("u7", at=AT)
        assert page.item_ids == right.item_ids
        for one, other in zip(page, right, strict=True):
            assert one.actions == pytest.approx(other.actions, abs=0.02)
    assert rec.state_counts.hits == 1


@pytest.mark.parametrize("state_bytes", [-1, "all", True, 1.5])
def test_a_budget_that_cannot_be_meant_is_refused(state_bytes: Any, toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="state_bytes must be 'auto' or a number of bytes"):
        Recommender.load(toy_bundle, state_bytes=state_bytes)


@pytest.mark.parametrize("cache_key", [["u1"], 1.5, "u" * 513, 1 << 200])
def test_a_key_that_cannot_be_kept_is_refused(cache_key: Any, toy_bundle: Path) -> None:
    rec = Recommender.load(toy_bundle, state_bytes=0)
    with pytest.raises(InputError, match="cache_key must be an integer or a string of at most 512 characters"):
        rec.recommend("u1", cache_key=cache_key)
