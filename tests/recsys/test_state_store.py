"""Kept states are those of the model, whatever was kept, evicted, changed or asked for before."""

from __future__ import annotations

import random
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from recsys.events import History
from recsys.state_store import StoreCounts, UserStateStore
from recsys.user_state import merge_states
from recsys.vocabulary import empty_history

CONFIGS: list[dict[str, Any]] = [
    {"block": "hstu", "num_blocks": 3},
    {"block": "softmax", "layout": "interleaved", "time_encoding": "rotary"},
    {"block": "ligr", "layout": "lagged", "time_encoding": "both", "position_bias": True, "positive_recency": True},
    {"block": "hstu", "past_rates": True, "user_dim": 3},
    {"block": "softmax", "positives_only": True, "use_actions": False},
]


def kept_bytes(store: UserStateStore) -> int:
    """What the kept states take by their number of pages."""
    kept = [state for tier in store._tiers._tiers for state in tier.kept.values()]
    assert all(not state.pins and state.listed for state in kept)
    return sum(store.layout.num_pages(state.num_rows) for state in kept) * store.layout.page_bytes


def small_store(model: Any, *, num_states: float = 50, host_states: float = 0, **settings: Any) -> UserStateStore:
    """Room for so many states of a full window."""
    store = UserStateStore(model, model_hash="a", max_bytes=0, page_rows=4)
    full = store.layout.state_bytes(model.config.window)
    budget = {"max_bytes": int(num_states * full) + store.layout.page_bytes, "host_bytes": 0}
    if host_states:
        budget["host_bytes"] = int(host_states * full) + store.layout.page_bytes
    return UserStateStore(model, model_hash="a", page_rows=4, **budget, **settings)


# -- a machine of everything that can happen -----------------------------------------------------------------------


def machine_of(models: list[Any], make_history: Callable[..., History], check: Callable[..., None]) -> type:
    """Users to whom things happen, two models in one small memory, and the models themselves as the oracle."""

    class Serving(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            first = small_store(models[0], num_states=2.3, host_states=1.5)
            self.stores = [first, first.for_model(models[1], "b")]
            self.histories = {user: make_history(9 * user, user) for user in range(5)}
            self.draws = 0

        @rule(user=st.integers(0, 4), count=st.integers(1, 9))
        def events_happen(self, user: int, count: int) -> None:
            self.draws += 1
            old = self.histories[user]
            start = int(old.timestamp[-1]) if len(old) else 1_600_000_000
            new = make_history(count, 1000 + self.draws, start=start)
            columns = [np.concatenate(pair) for pair in zip(_columns(old), _columns(new), strict=True)]
            self.histories[user] = History(*columns)

        @rule(user=st.integers(0, 4), place=st.integers(0, 40), name=st.sampled_from(["item", "yes", "surface"]))
        def an_event_changes(self, user: int, place: int, name: str) -> None:
            old = self.histories[user]
            if len(old):
                column, size = getattr(old, name).copy(), {"item": 40, "yes": 8, "surface": 3}[name]
                column[place % len(old)] = (column[place % len(old)] + 1) % size
                changed = replace(old, **{name: column})
                self.histories[user] = replace(changed, known=old.known | changed.yes)

        @rule(user=st.integers(0, 4), low=st.integers(0, 2), cut=st.integers(0, 6))
        def a_history_shrinks(self, user: int, low: int, cut: int) -> None:
            old = self.histories[user]
            self.histories[user] = old.at(slice(low, max(0, len(old) - cut)))

        @rule(one=st.integers(0, 4), other=st.integers(0, 4))
        def two_users_change_keys(self, one: int, other: int) -> None:
            self.histories[one], self.histories[other] = self.histories[other], self.histories[one]

        @rule(users=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=5),
              keep_cache=st.booleans(), version=st.integers(0, 1))  # fmt: skip
        def users_ask(self, users: list[tuple[int, bool]], keep_cache: bool, version: int) -> None:
            model, asked = models[version], [self.histories[user] for user, _ in users]
            keys = [user if named else None for user, named in users]
            user_BK = None
            if model.config.user_dim:
                user_BK = torch.randn(len(users), 3, generator=torch.Generator().manual_seed(self.draws))
            ours, counts = self.stores[version].states(keys, asked, keep_cache=keep_cache, user_BK=user_BK)
            check(model, ours, model.encode(asked, keep_cache=keep_cache, user_BK=user_BK))
            assert counts.hits + counts.appended + counts.encoded == len(users)
            assert counts.encoded >= keys.count(None)

        @rule(user=st.integers(0, 4))
        def a_user_is_forgotten(self, user: int) -> None:
            self.stores[0].forget([user])
            assert all(key[1] != user for key in self.stores[1]._tiers.keys())

        @invariant()
        def the_books_are_right(self) -> None:
            assert self.stores[0].used_bytes == kept_bytes(self.stores[0])

    return Serving


@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: changes["block"])
def test_every_state_is_that_of_a_fresh_pass(changes, state_model, state_history, assert_same_states):
    models = [state_model(seed=seed, **changes) for seed in (0, 1)]
    budget = settings(
        max_examples=4,
        stateful_step_count=14,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],
    )
    run_state_machine_as_test(machine_of(models, state_history, assert_same_states), settings=budget)


@pytest.mark.slow
@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: changes["block"])
def test_every_state_is_that_of_a_fresh_pass_at_length(changes, state_model, state_history, assert_same_states):
    models = [state_model(seed=seed, **changes) for seed in (0, 1)]
    budget = settings(
        max_examples=15, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine_of(models, state_history, assert_same_states), settings=budget)


def _columns(history: History) -> list[Any]:
    return [getattr(history, name) for name in ("item", "timestamp", "yes", "known", "surface", "time_known")]


# -- one promise each ----------------------------------------------------------------------------------------------


def test_a_batch_may_mix_hits_appends_and_fresh_histories(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    whole = [state_history(16, seed) for seed in range(4)]
    _, counts = store.states([0, 1, 2], [h.prefix(n) for h, n in zip(whole, (16, 5, 9), strict=False)])
    assert counts == StoreCounts(encoded=3, tokens_encoded=30)
    asked = [whole[3].prefix(2), whole[1].prefix(7), empty_history(), whole[0], whole[2].prefix(16), whole[1]]
    states, counts = store.states([3, 1, 5, 0, 2, None], asked)
    assert_same_states(model, states, model.encode(asked))
    assert counts == StoreCounts(1, 2, 3, tokens_encoded=2 + 2 + 7 + 16, tokens_reused=5 + 16 + 9)
    assert store.counts == StoreCounts(1, 2, 6, tokens_encoded=30 + 27, tokens_reused=30)
    assert store.num_states == 4


def test_a_changed_history_is_encoded_anew(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    history = state_history(12, 3)
    store.states(["u"], [history])
    item = history.item.copy()
    item[2] = 17
    for asked in (replace(history, item=item), history.prefix(7), history.at(slice(1, None))):
        states, counts = store.states(["u"], [asked])
        assert_same_states(model, states, model.encode([asked]))
        assert counts.encoded == 1


def test_a_changed_action_is_noticed(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    history = state_history(12, 3)
    store.states(["u"], [history])
    for name in ("known", "yes"):
        mask = getattr(history, name).copy()
        mask[5] ^= 0b100
        history = replace(history, **{name: mask})
        states, counts = store.states(["u"], [history])
        assert_same_states(model, states, model.encode([history]))
        assert counts.encoded == 1


def test_a_window_slide_encodes_anew(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    history = state_history(40, 4)
    store.states(["u"], [history.prefix(10)])
    encoded = []
    for length in range(11, 41):
        states, counts = store.states(["u"], [history.prefix(length)])
        assert_same_states(model, states, model.encode([history.prefix(length)]))
        if counts.encoded:
            encoded.append(length)
    assert encoded == [17, 21, 25, 29, 33, 37]


def test_a_swapped_model_never_reads_old_states(state_model, state_history, assert_same_states):
    models = [state_model(seed=seed) for seed in (0, 1)]
    old = small_store(models[0])
    new = old.for_model(models[1], "b")
    history = state_history(12, 3)
    for model, store in ((models[0], old), (models[1], new), (models[0], old), (models[1], new)):
        states, _ = store.states(["u"], [history])
        assert_same_states(model, states, model.encode([history]))
    assert new.counts == old.counts == StoreCounts(hits=2, encoded=2, tokens_encoded=24, tokens_reused=24)
    old.clear()
    assert new.num_states == 1
    wider = old.for_model(state_model(dim=32), "c")
    wider.states(["u"], [history])
    assert (wider.num_states, new.num_states) == (1, 1)
    assert wider.counts.encoded == 3


def test_only_histories_with_a_changed_item_are_encoded_anew(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    with_item, without = state_history(9, 1), state_history(9, 2)
    changed = int(np.setdiff1d(with_item.item, without.item).max())
    store.states([1, 2], [with_item, without])
    other = state_model()
    other.items.content_IC[changed] += 1.0
    version_I = np.zeros(model.config.num_items, dtype=np.int64)
    version_I[changed] = 1
    states, counts = store.for_model(other, "a", version_I).states([1, 2], [with_item, without])
    assert_same_states(other, states, other.encode([with_item, without]))
    assert (counts.hits, counts.encoded) == (1, 1)


def test_times_before_1970_are_not_continued(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    history = state_history(9, 4, start=-(10**6), vouched=1.0)
    store.states(["u"], [history.prefix(6)])
    states, counts = store.states(["u"], [history])
    assert_same_states(model, states, model.encode([history]))
    assert counts.encoded == 1


def test_a_request_without_keys_and_values_breaks_no_kept_state(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    history = state_history(16, 6)
    for length, keep_cache in ((9, False), (9, False), (11, False), (11, True), (14, True), (14, False), (16, False)):
        states, counts = store.states(["u"], [history.prefix(length)], keep_cache=keep_cache)
        assert_same_states(model, states, model.encode([history.prefix(length)], keep_cache=keep_cache))
        assert counts.encoded == (store.counts.encoded == 1 and store.counts.hits + store.counts.appended == 0)
    assert store.counts.appended == 3


def test_a_returned_state_is_the_callers_own(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model)
    history = state_history(10, 6)
    for _ in range(2):
        states, _ = store.states(["u"], [history])
        states.cache[0][0].fill_(7.0)
        states.last_BD.fill_(7.0)
        states.recent_BM.fill_(7)
    states, counts = store.states(["u"], [history])
    assert counts.hits == 1
    assert_same_states(model, states, model.encode([history]))


def test_least_recently_used_states_leave_first_by_way_of_the_second_tier(state_model, state_history):
    model = state_model()
    store = small_store(model, num_states=2, host_states=2)
    histories = [state_history(16, seed) for seed in range(4)]

    def ask(user: int) -> StoreCounts:
        return store.states([user], [histories[user]])[1]

    assert [ask(user).evicted for user in (0, 1, 0, 2)] == [0, 0, 0, 1]  # 1 was used before 0
    assert [key[1] for key in store._tiers.keys()] == [0, 2, 1]
    assert ask(0).hits == 1
    assert ask(1).hits == 1  # comes up from the second tier, and 2 goes down
    assert [key[1] for key in store._tiers.keys()] == [0, 1, 2]
    assert ask(3).evicted == 1
    assert [key[1] for key in store._tiers.keys()] == [1, 3, 2, 0]
    assert ask(2).hits == 1  # 1 goes down, where 0 was used longest ago
    assert [key[1] for key in store._tiers.keys()] == [3, 2, 1]
    assert ask(0).encoded == 1


def test_a_state_that_is_forgotten_on_its_way_down_is_gone(state_model, state_history, monkeypatch):
    store = small_store(state_model(), num_states=2, host_states=2)
    for user in (0, 1):
        store.states([user], [state_history(16, user)])
    lower = store._tiers._tiers[1].pages
    copy = lower.copy

    def forgotten_meanwhile(*pages: Any) -> None:
        copy(*pages)
        store.forget([0])

    monkeypatch.setattr(lower, "copy", forgotten_meanwhile)
    assert store.states([2], [state_history(16, 2)])[1].evicted == 1
    assert [key[1] for key in store._tiers.keys()] == [1, 2]
    assert store.used_bytes == kept_bytes(store)


def test_a_pinned_state_is_neither_evicted_nor_overwritten(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model, num_states=2)
    history = state_history(16, 1)
    held = []
    for length in (10, 13):  # it grows, beside its former self
        store.states(["pinned"], [history.prefix(length)])
        held += store._tiers.pin([("a", "pinned")])
    for user in range(6):
        asked = [state_history(12, 20 + user)]
        states, _ = store.states([user], asked)
        assert_same_states(model, states, model.encode(asked))
    for state, length in zip(held, (10, 13), strict=True):
        before = store._tiers.read([state], keep_cache=True)
        encoded = model.encode([history.prefix(length)])
        assert_same_states(model, replace(before, user_BD=encoded.user_BD), encoded)
    assert store.states(["pinned"], [history.prefix(13)])[1].hits == 1
    store._tiers.unpin(held)
    assert store.used_bytes == kept_bytes(store)
    store.clear()
    assert store.used_bytes == 0


def test_a_state_larger_than_the_budget_is_not_kept_and_drives_nobody_out(state_model, state_history):
    model = state_model()
    store = small_store(model, num_states=0.5)
    small, large = state_history(6, 1), state_history(16, 2)
    store.states(["small"], [small])
    for _ in range(2):
        assert store.states(["large"], [large])[1].encoded == 1
    assert store.states(["small"], [small])[1].hits == 1
    nothing = UserStateStore(model, model_hash="a", max_bytes=0)
    for _ in range(2):
        assert nothing.states(["small"], [small])[1].encoded == 1
    assert (nothing.num_states, nothing.used_bytes) == (0, 0)


def test_a_history_of_a_million_events_and_an_empty_one(state_model, state_history, assert_same_states):
    model = state_model(past_rates=True)
    store = small_store(model)
    whole = state_history(1_000_003, 0)
    asked = [whole.prefix(1_000_001), empty_history()]
    store.states(["old", "new"], asked)
    asked[0] = whole
    states, counts = store.states(["old", "new"], asked)
    assert_same_states(model, states, model.encode(asked))
    assert (counts.appended, counts.encoded) == (1, 1)


def test_merging_states_is_selecting_from_one_batch(state_model, state_history, assert_same_states):
    model = state_model(layout="interleaved", user_dim=2)
    histories = [state_history(n, n) for n in (3, 0, 16, 7)]
    whole = model.encode(histories)
    parts = [model.encode([histories[2], histories[1]]), model.encode([histories[3]]), model.encode([histories[0]])]
    assert_same_states(model, merge_states(parts, [[2, 1], [3], [0]]), whole)


def test_threads_that_share_few_pages_all_get_right_answers(state_model, state_history, assert_same_states):
    model = state_model()
    store = small_store(model, num_states=2.5, host_states=1)
    whole = [state_history(16, seed) for seed in range(5)]
    fresh = {(user, length): model.encode([whole[user].prefix(length)]) for user in range(5) for length in range(9, 17)}
    barrier = threading.Barrier(6)

    def serve(seed: int) -> int:
        draw = random.Random(seed)
        barrier.wait()
        for _ in range(25):
            user, length = draw.randrange(5), draw.randrange(9, 17)
            states, _ = store.states([user], [whole[user].prefix(length)])
            assert_same_states(model, states, fresh[user, length])
        return seed

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(serve, range(6))) == list(range(6))
    assert store.used_bytes == kept_bytes(store)
    assert store.counts.hits + store.counts.appended > 0
    store.clear()
    assert store.used_bytes == 0


def test_a_failed_request_leaves_no_page_behind(state_model, state_history, monkeypatch):
    model = state_model()
    store = small_store(model)
    history = state_history(12, 3)
    store.states(["u"], [history.prefix(10)])
    used = store.used_bytes

    def broken(*_: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(store._tiers._tiers[0].pages, "write", broken)
        for key in ("u", "v"):
            with pytest.raises(RuntimeError, match="no memory"):
                store.states([key], [history])
    assert store.used_bytes == used == kept_bytes(store)
    assert store.states(["u"], [history])[1].appended == 1

    narrow = small_store(model, num_states=1, host_states=1)
    narrow.states(["u"], [state_history(16, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(narrow._tiers._tiers[1].pages, "copy", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            narrow.states(["v"], [state_history(16, 2)])
    assert narrow.used_bytes == kept_bytes(narrow) == 0
    narrow.states(["u", "v"], [state_history(16, 1), state_history(16, 2)])
    assert narrow.num_states == 2


def test_memory_does_not_grow_with_requests(state_model, state_history):
    model = state_model()
    store = small_store(model, num_states=4, host_states=1)
    whole = [state_history(16, seed) for seed in range(6)]
    draw = random.Random(0)

    def ask(times: int) -> None:
        for _ in range(times):
            user = draw.randrange(6)
            store.states([user], [whole[user].prefix(12 if draw.random() < 0.05 else 10)], keep_cache=False)

    ask(200)
    before = _resident()
    ask(1200)
    assert _resident() - before < 2 << 20
    assert store.num_states <= 6
    assert store.used_bytes == kept_bytes(store)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
