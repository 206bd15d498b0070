"""What trains: windows, targets and the slates joined to them; nothing held out is ever among it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events import EventLog, SlateLog
from recsys.training_batches import TrainingExamples, events_before

NUM_ITEMS = 50


def make_log(lengths, seed=0) -> EventLog:
    rng = np.random.default_rng(seed)
    total = int(sum(lengths))
    return EventLog(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item=rng.integers(0, NUM_ITEMS, total),
        timestamp=np.concatenate([np.sort(rng.integers(0, 60, n)) for n in lengths] or [np.zeros(0, np.int64)]),
        yes=rng.integers(0, 2, total),
        known=np.ones(total, dtype=np.int64),
        surface=np.zeros(total, dtype=np.int64),
        value=np.zeros(total, dtype=np.float32),
        time_known=np.ones(total, dtype=bool),
    )


def make_slates(log: EventLog, per_user: int, seed: int = 1) -> SlateLog:
    rng = np.random.default_rng(seed)
    users = len(log.offsets) - 1
    user = np.repeat(np.arange(users), per_user)
    size = rng.integers(1, 4, len(user))
    rows = int(size.sum())
    time = np.sort(rng.integers(0, 60, (users, per_user)), axis=1).reshape(-1)
    return SlateLog(
        user_offsets=np.arange(users + 1) * per_user,
        offsets=np.concatenate([[0], np.cumsum(size)]),
        user=user,
        timestamp=time,
        split=rng.integers(0, 2, len(user)),
        item=rng.integers(0, NUM_ITEMS, rows),
        yes=rng.integers(0, 2, rows),
        known=np.ones(rows, dtype=np.int64),
        surface=np.zeros(rows, dtype=np.int64),
        time=np.repeat(time, size),
        value=np.zeros(rows, dtype=np.float32),
    )


def test_events_before_counts_strictly_earlier_ones():
    log = make_log([6, 0, 9, 3], seed=3)
    for user in range(4):
        times = log.timestamp[log.offsets[user] : log.offsets[user + 1]]
        for time in range(-1, 62):
            count = events_before(log, np.array([user]), np.array([time]))[0]
            assert count == sum(t < time for t in times)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    held_out=st.integers(0, 3),
    budget=st.integers(3, 60),
    seed=st.integers(0, 99),
    crop=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_pass_shows_every_training_event_once_and_nothing_else(lengths, held_out, budget, seed, crop):
    log = make_log(lengths, seed)
    train_end = np.maximum(np.array(lengths, dtype=np.int64) - held_out, 0)
    positive = log.yes == 1
    slates = make_slates(log, 3, seed)
    examples = TrainingExamples(
        log, train_end, positive, slates, window=8, batch_tokens=budget, seed=seed, start_share=0.5, crop=crop
    )
    tagged = EventLog(log.offsets, np.arange(len(log)), *(getattr(log, n) for n in log.__slots__[2:]))
    examples.log = tagged  # items become row numbers, so that a batch says where its events come from
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(log)) - log.offsets[owner]
    trains = place < train_end[owner]
    shown, slate_rows = [], 0
    for step in range(examples.steps_per_epoch):
        batch = examples.batch(step)
        rows = batch.events.item_T.numpy()
        shown.append(rows)
        assert max((g.length for g in batch.events.groups), default=0) <= 8
        for row, target in zip(rows, batch.target_T.numpy(), strict=True):
            later = np.flatnonzero(positive & trains & (owner == owner[row]) & (np.arange(len(log)) > row))
            assert target == (later[0] if len(later) else -1)
        for row, target in zip(
            batch.events.offsets_S1[batch.start_S].numpy(), batch.start_target_F.numpy(), strict=True
        ):
            assert place[rows[row]] == 0
            assert target == np.flatnonzero(positive & trains & (owner == owner[rows[row]]))[0]
        if batch.candidates is not None:
            slate_rows += check_candidates(batch, rows, log, slates, owner, place, train_end)
    assert np.array_equal(np.sort(np.concatenate(shown or [np.zeros(0, int)])), np.flatnonzero(trains))
    usable = (slates.split == 0) & (train_end[slates.user] > 0)
    assert slate_rows == int(np.diff(slates.offsets)[usable].sum())


def check_candidates(batch, rows, log, slates, owner, place, train_end) -> int:
    """Every candidate is of a training slate of its sequence's user and sees exactly the events before the slate."""
    candidates = batch.candidates
    for n in range(len(candidates.item_N)):
        sequence = int(candidates.sequence_Q[candidates.place_N[n] // candidates.columns])
        low, high = (int(batch.events.offsets_S1[sequence + i]) for i in (0, 1))
        slate = int(candidates.slate_N[n])
        user = owner[rows[low]]
        assert slates.split[slate] == 0 and slates.user[slate] == user
        own = np.flatnonzero(owner == user)
        before = min(int((log.timestamp[own] < slates.timestamp[slate]).sum()), int(train_end[user]))
        visible = int(candidates.visible_N[n])
        assert visible <= high - low
        assert place[rows[low]] + visible == before  # the window reaches exactly up to the slate
    return len(candidates.item_N)


@pytest.mark.parametrize("crop", [0.0, 0.5])
def test_batches_depend_on_seed_and_step_alone(crop):
    log = make_log([12] * 20)
    train_end = np.full(20, 12)

    def examples(seed):
        return TrainingExamples(log, train_end, log.yes == 1, None, window=8, batch_tokens=30, seed=seed, crop=crop)

    straight, jumping = examples(4), examples(4)
    steps = [0, 17, 3, 40, 9]
    expected = {step: straight.batch(step).events.item_T for step in sorted(steps)}
    for step in steps:
        assert expected[step].equal(jumping.batch(step).events.item_T)
    assert not expected[0].equal(examples(5).batch(0).events.item_T)


def test_crops_cut_that_share_of_windows_at_every_place():
    log = make_log([8] * 4000)

    def windows(crop):
        found = TrainingExamples(
            log, np.full(4000, 8), log.yes == 1, None, window=8, batch_tokens=999, seed=0, crop=crop
        )._windows
        return [column.tolist() for column in found]

    user, start, end = windows(0.25)
    assert 4000 + 900 < len(user) < 4000 + 1100
    late = [begin for begin, stop in zip(start, end, strict=True) if begin]
    assert min(np.bincount(late, minlength=8)[1:]) > 90  # 1/7 of about 1000 each
    assert windows(0.0)[1] == [0] * 4000


@pytest.mark.parametrize("rows", [True, False])
def test_slates_are_left_out_where_nothing_ranks(rows):
    log = make_log([12] * 5)
    slates = make_slates(log, 4) if rows else None
    examples = TrainingExamples(log, np.full(5, 12), log.yes == 1, slates, window=16, batch_tokens=999, seed=0)
    assert (examples.batch(0).candidates is not None) == rows
