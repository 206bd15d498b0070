"""Past rates: counted strictly before a time, the same in training, in evaluation and from a bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from recsys.errors import InputError
from recsys.event_counts import EventCounts, mask_bits
from recsys.events import EventLog, History
from recsys.heads import ActionHead
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.past_counts import GROUPS, PastLog, PastTable, history_counts, user_keys
from recsys.past_rates import past_features, past_tensor, past_width, without_surface
from recsys.training_features import DatasetFeatures
from recsys.wide_start import WideStart

A, S, I, U = 3, 4, 9, 6  # noqa: E741


@pytest.fixture
def log() -> EventLog:
    """Many events at equal times, of few items."""
    rng = np.random.default_rng(0)
    sizes = np.array([40, 0, 25, 60, 1, 30])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    n = int(offsets[-1])
    known = rng.integers(0, 2**A, n)
    return EventLog(
        offsets=offsets,
        item=rng.integers(0, I, n),
        timestamp=np.concatenate([np.sort(rng.integers(100, 140, size)) for size in sizes]),
        yes=known & rng.integers(0, 2**A, n),
        known=known,
        surface=rng.integers(0, S, n),
        value=np.full(n, np.nan, np.float32),
        time_known=np.ones(n, dtype=bool),
    )


def asked(rows: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, U, rows), rng.integers(-1, I, rows), rng.integers(0, S, rows), rng.integers(95, 145, rows)


def features(past, user, item, surface, time):
    return past_features(past, item, surface, time, *own_counts(past, user, surface, time))


def own_counts(past, user, surface, time):
    return [
        past.counts(group, user_keys(group, user, surface, past.num_surfaces), time)
        for group in ("user", "user_surface")
    ]


def test_counts_are_those_of_a_slow_loop():
    rng = np.random.default_rng(3)
    key, time, known = rng.integers(0, 5, 200), rng.integers(0, 30, 200), rng.integers(0, 8, 200)
    yes = known & rng.integers(0, 8, 200)
    asked_key, asked_time = rng.integers(-1, 6, 80), rng.integers(-2, 33, 80)
    found = EventCounts(key, time, yes, known, A).before(asked_key, asked_time)
    for row, k, t in zip(found, asked_key, asked_time, strict=True):
        mine = (key == k) & (time < t)
        expected = [(mask[mine] >> a & 1).sum() for mask in (yes, known) for a in range(A)]
        assert row.tolist() == expected


def test_features_of_one_row_by_hand():
    """Item 1 on surface 2 before time 10: two of its three events, and one event of another item."""
    log = EventLog(
        offsets=np.array([0, 2, 4]),
        item=np.array([1, 1, 0, 1]),
        timestamp=np.array([5, 6, 7, 10]),
        yes=np.array([1, 0, 1, 1]),
        known=np.array([1, 1, 1, 1]),
        surface=np.array([2, 0, 2, 2]),
        value=np.full(4, np.nan, np.float32),
        time_known=np.ones(4, dtype=bool),
    )
    past = PastLog(log, 1, 3)
    found = features(past, *(np.array([value]) for value in (0, 1, 2, 10)))[0]
    overall = (2 + 0.5) / (3 + 1)
    surface, item, user = ((yes + m * overall) / (n + m) for yes, n, m in ((2, 2, 20), (1, 2, 20), (1, 2, 5)))
    placed, user_placed = (1 + 20 * surface) / (1 + 20), (1 + 5 * user) / (1 + 5)
    odds = [np.log(rate / (1 - rate)) for rate in (overall, surface, item, user, placed, user_placed)]
    # The item's two events, at 5 and 6: nothing was before the first; the second was nowhere, after one of its user.
    first = 0.5
    before = (1 + 0.5) / (1 + 1)
    second = (1 + 20 * before) / (1 + 20)
    surprise, variance = (1 - first) + (0 - second), first * (1 - first) + second * (1 - second)
    expected = [*odds, surprise / (variance + 2), np.log(3), np.log(3), np.log(2), np.log(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(found) == past_width(1)


def test_what_happens_at_a_time_or_later_changes_nothing_bit_for_bit(log):
    rows = asked(60)
    before = features(PastLog(log, A, S), *rows)
    for number in range(0, 60, 7):
        time = rows[3][number]
        late = log.timestamp >= time
        changed = replace(
            log,
            item=np.where(late, 0, log.item),
            yes=np.where(late, 7, log.yes),
            known=np.where(late, 7, log.known),
            surface=np.where(late, 1, log.surface),
            timestamp=np.where(late, log.timestamp + 5, log.timestamp),
        )
        after = features(PastLog(changed, A, S), *rows)
        assert np.array_equal(before[number], after[number])


def test_another_users_event_just_before_does_count(log):
    past = PastLog(log, A, S)
    at = np.flatnonzero((log.surface > 0) & (log.known & 1 == 1))[0]
    item, surface, time = (column[at : at + 1] for column in (log.item, log.surface, log.timestamp + 1))
    other = np.array([5])
    changed = replace(log, yes=np.where(np.arange(len(log)) == at, log.yes ^ 1, log.yes))
    difference = features(PastLog(changed, A, S), other, item, surface, time) != features(
        past, other, item, surface, time
    )
    moved = {group for place, group in enumerate(GROUPS) if difference[0, place * A]}
    assert {"all", "surface", "item", "item_surface"} <= moved


def test_events_that_are_not_shared_count_for_their_own_user_only(log):
    shared = np.random.default_rng(5).random(len(log)) < 0.5
    rows = asked(40)
    partly, only = PastLog(log, A, S, shared), PastLog(log.only(shared), A, S)
    for group in ("all", "item"):
        key = rows[1] if group == "item" else np.zeros(40, dtype=np.int64)
        assert np.array_equal(partly.counts(group, key, rows[3]), only.counts(group, key, rows[3]))
    assert np.array_equal(partly.counts("user", rows[0], rows[3]), PastLog(log, A, S).counts("user", rows[0], rows[3]))
    # Every event by a user of its own: what others may not know of an item then changes nothing of its lift.
    alone = replace(log, offsets=np.arange(len(log) + 1))
    changed = replace(alone, yes=np.where(shared, log.yes, log.yes ^ log.known))
    before, after = (PastLog(each, A, S, shared).surprises(rows[1], rows[3]) for each in (alone, changed))
    assert np.array_equal(before, after) and before.any()


def test_a_table_counts_what_a_log_counts_at_the_end(log, tmp_path):
    PastTable.build(log, A, S).save(tmp_path / "past.safetensors")
    table, past = PastTable.load(tmp_path / "past.safetensors"), PastLog(log, A, S)
    user, item, surface, _ = asked(50)
    end = np.full(50, 1000)
    expected = features(past, user, item, surface, end)
    own = own_counts(past, user, surface, end)
    assert np.array_equal(past_features(table, item, surface, end, *own), expected)
    user, item, surface = user[:10], item.reshape(10, 5), surface.reshape(10, 5)
    whole = history_counts([log.history(u) for u in user], A, S)
    shaped = past_tensor(table, *(torch.from_numpy(x) for x in (whole, item, end[:10], surface)))
    each = features(past, user.repeat(5), item.reshape(-1), surface.reshape(-1), end)
    assert torch.equal(shaped, torch.from_numpy(each).view(10, 5, -1))


@pytest.mark.parametrize(
    ("name", "column", "value"), [("item.counts", 0, -1), ("item.counts", 0, 10**6), ("surprise.sums", A, -1)]
)
def test_counts_that_cannot_be_are_refused(log, tmp_path, name, column, value):
    PastTable.build(log, A, S).save(tmp_path / "past.safetensors")
    arrays = load_file(tmp_path / "past.safetensors")
    arrays[name][0, column] = value
    save_file(arrays, tmp_path / "past.safetensors")
    with pytest.raises(ValueError, match=rf"past\.safetensors: {name}: an action can be counted from 0 times"):
        PastTable.load(tmp_path / "past.safetensors")


def test_user_counts_of_a_history_are_those_of_the_log(log):
    histories = [log.history(user) for user in range(U)]
    found, past = history_counts(histories, A, S).reshape(U, S, 2 * A), PastLog(log, A, S)
    user, end = np.arange(U), np.full(U, 1000)
    assert np.array_equal(found[:, 0], past.counts("user", user, end))
    for surface in range(1, S):
        assert np.array_equal(found[:, surface], own_counts(past, user, np.full(U, surface), end)[1])
    assert not found[1].any() and found[3, 1:].any(-1).all()


def test_a_lift_says_how_an_item_does_among_what_its_users_do():
    """Two items of the same rate: one is met by those who like everything, the other by those who like nothing."""
    rng = np.random.default_rng(4)
    users, events = 40, 50
    likes = np.repeat(np.arange(users) % 2 == 0, events)
    item = rng.integers(2, 8, users * events)
    half = (np.arange(users * events) % events == events - 1) & (rng.random(users * events) < 0.9)
    item[half] = np.where(likes[half], 0, 1)
    yes = rng.random(users * events) < np.where(likes, 0.9, 0.1)
    yes[half] = np.arange(half.sum()) % 4 < 2
    log = EventLog(
        offsets=np.arange(users + 1) * events, item=item, timestamp=np.tile(np.arange(events), users),
        yes=yes.astype(np.int64), known=np.ones_like(item), surface=np.ones_like(item),
        value=np.full(len(item), np.nan, np.float32), time_known=np.ones(len(item), dtype=bool),
    )  # fmt: skip
    asked_item = np.array([0, 1, 2, 9, -1])
    rows = features(PastLog(log, 1, 2), np.zeros(5, np.int64), asked_item, np.ones(5, np.int64), np.full(5, events))
    rate, lift = rows[:, 2], rows[:, len(GROUPS)]
    assert abs(rate[0] - rate[1]) < 0.4 and lift[0] < -0.5 < 0.5 < lift[1] and abs(lift[2]) < 0.3
    assert not lift[3:].any()


def test_a_hidden_surface_is_read_as_no_surface(log):
    past, (user, item, surface, time) = PastLog(log, A, S), asked(50)
    seen = torch.from_numpy(features(past, user, item, surface, time))
    hidden = torch.arange(50) % 2 == 0
    blind = torch.from_numpy(features(past, user, item, np.zeros_like(surface), time))
    assert torch.equal(without_surface(seen, hidden), torch.where(hidden[:, None], blind, seen))
    assert not torch.equal(seen, blind)


def test_training_events_have_the_features_of_their_own_time(toy_dataset):
    past, manifest = PastLog.of(toy_dataset), toy_dataset.manifest
    sizes = {"num_actions": len(manifest.actions), "num_surfaces": len(manifest.surfaces)}
    found = DatasetFeatures(toy_dataset, make_model(**sizes).config).events()
    events, end = toy_dataset.events, toy_dataset.train_end
    for user in (0, 7, 20):
        for place in range(len(events.history(user))):
            row = int(events.offsets[user]) + place
            if place >= end[user]:
                assert not found[row].any()
                continue
            columns = (events.item, events.surface, events.timestamp)
            expected = features(past, np.array([user]), *(column[row : row + 1] for column in columns))[0]
            np.testing.assert_allclose(found[row], expected, rtol=2e-3, atol=2e-3)
            own = past.counts("user", np.array([user]), events.timestamp[row : row + 1])[0]
            earlier = events.history(user).timestamp < events.timestamp[row]
            assert own[:A].tolist() == mask_bits(events.history(user).yes[earlier], A + 1)[:, :A].sum(0).tolist()


def test_timestamps_that_only_count_are_refused(toy_dataset, monkeypatch):
    manifest = replace(toy_dataset.manifest, clock="order")
    monkeypatch.setattr(toy_dataset, "manifest", manifest)
    with pytest.raises(InputError, match="past rates need a real clock"):
        PastLog.of(toy_dataset)


def make_model(**changes) -> UnifiedModel:
    torch.manual_seed(0)
    sizes = {"num_items": I, "num_actions": A, "num_surfaces": S, "positive_mask": 0b011}
    settings = {"dim": 16, "window": 16, "past_rates": True, "cross_layers": 2, "cross_rank": 4}
    model = UnifiedModel(ModelConfig(**{**sizes, **settings, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model.eval()


def ranked(model, states, log, item, at, surface):
    past = past_tensor(PastTable.build(log, A, S), states.past_BX, item, at, surface)
    return model.rank(states, item, at, surface, past).sigmoid()


def test_candidate_alone_scores_as_in_a_slate_and_permutes(log):
    model = make_model()
    states = model.encode([log.history(user) for user in range(4)])
    generator = torch.Generator().manual_seed(1)
    item = torch.randint(0, I, (4, 7), generator=generator)
    surface = torch.randint(0, S, (4, 7), generator=generator)
    at = torch.full((4,), 200)
    together = ranked(model, states, log, item, at, surface)
    columns = [ranked(model, states, log, item[:, [c]], at, surface[:, [c]]) for c in range(7)]
    assert torch.allclose(together, torch.cat(columns, 1), atol=1e-5)
    order = torch.randperm(7, generator=generator)
    assert torch.allclose(
        together[:, order], ranked(model, states, log, item[:, order], at, surface[:, order]), atol=1e-5
    )
    assert together.std() > 0.05


def test_appending_counts_what_encoding_the_longer_history_counts(log):
    model = make_model()
    whole = [log.history(user).prefix(12) for user in (0, 2, 3)]

    def rest(history: History, start: int) -> History:
        return history.at(slice(start, None))

    states = model.encode([h.prefix(9) for h in whole])
    grown, fresh = model.append(states, [rest(h, 9) for h in whole]), model.encode(whole)
    assert torch.equal(grown.past_BX, fresh.past_BX) and grown.past_BX.sum() > states.past_BX.sum()
    picked = grown.select(torch.tensor([2, 0]))
    assert torch.equal(picked.past_BX, fresh.past_BX[[2, 0]])


def test_a_head_starts_as_a_logistic_regression_on_the_rates(log):
    """As good as scikit-learn's where labels are many; an action without labels stays at the plain combination."""
    from sklearn.linear_model import LogisticRegression

    past = features(PastLog(log, A, S), *asked(4000)).astype(np.float64)
    rng = np.random.default_rng(2)
    yes = rng.random((4000, A)) < 1 / (1 + np.exp(-(2 * past[:, :A] + past[:, 3 * A : 4 * A] - 0.5)))
    known = np.ones_like(yes)
    known[:, 2] = False
    start = WideStart.fit(past, yes, known)
    head = ActionHead(make_model(cross_layers=0).config)
    head.set_priors(torch.full((A,), 0.3), None)
    head.set_features(start)
    rows = torch.from_numpy(past).float()
    logits = head(torch.randn(4000, 16), torch.randn(4000, 16), None, rows).detach()
    scaled = (past - start.mean_F.numpy()) / start.scale_F.numpy()
    for action in range(2):
        other = LogisticRegression(C=1 / 20, max_iter=2000).fit(scaled, yes[:, action]).decision_function(scaled)
        found = logits[:, action].double().numpy()
        losses = [np.logaddexp(0, score).mean() - (yes[:, action] * score).mean() for score in (found, other)]
        assert losses[0] < losses[1] + 2e-3 < 0.69
    place = {group: slice(p * A, p * A + A) for p, group in enumerate(GROUPS)}
    plain = 0.7 * rows[:, place["item_surface"]] + 0.7 * rows[:, place["user"]] + 0.5 * rows[:, place["item"]]
    assert torch.allclose(logits[:, 2], (plain - 0.9 * rows[:, place["all"]])[:, 2], atol=1e-4)


def test_ranking_without_the_rates_says_what_is_missing(log):
    model = make_model()
    states = model.encode([log.history(0)])
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="feature_BCF"):
        model.rank(states, one, torch.tensor([200]), one)
