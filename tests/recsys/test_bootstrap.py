"""Intervals over users."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.bootstrap import bounds, mean_intervals, paired_difference, per_user, resampled


def test_interval_of_a_coin_is_that_of_the_binomial():
    value = np.tile([0.0, 1.0], 200)
    ((low, high),) = mean_intervals(np.arange(400), value[:, None], seed=3)
    half = 1.96 * (0.5 * 0.5 / 400) ** 0.5
    assert low == pytest.approx(0.5 - half, abs=0.008)
    assert high == pytest.approx(0.5 + half, abs=0.008)


def test_users_are_drawn_with_all_their_requests():
    # Ten users with 40 equal requests each: the spread is that of ten values, not of 400.
    user = np.repeat(np.arange(10), 40)
    value = (user % 2).astype(np.float64)
    ((low, high),) = mean_intervals(user, value[:, None], seed=3)
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 10) ** 0.5, abs=0.12)


def test_same_seed_same_interval():
    value = np.random.default_rng(0).random((50, 2))
    first, again = (mean_intervals(np.arange(50), value, seed=1, resamples=50) for _ in range(2))
    assert first == again
    assert first != mean_intervals(np.arange(50), value, seed=2, resamples=50)


def test_undefined_values_are_left_out_of_mean_and_count():
    sums, counts = per_user(np.array([5, 5, 9]), np.array([[1.0], [np.nan], [4.0]]))
    assert sums.tolist() == [[1.0], [4.0]] and counts.tolist() == [[1.0], [1.0]]
    assert mean_intervals(np.array([5, 9]), np.array([[2.0], [np.nan]]), seed=0) == [(2.0, 2.0)]
    assert np.isnan(bounds(np.full((4, 1), np.nan))[0]).all()


def test_every_resample_draws_as_many_users_as_there_are():
    totals = resampled(lambda weight_U: np.array([weight_U.sum(), (weight_U == 0).sum()]), 30, seed=0, resamples=20)
    assert (totals[:, 0] == 30).all()
    assert (totals[:, 1] > 0).all()  # with replacement: somebody is left out


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(4)
    ours = rng.random(200)
    other = ours - 0.1 + 0.01 * rng.standard_normal(200)
    difference, (low, high) = paired_difference(np.arange(200), ours, other, seed=0)
    assert difference == pytest.approx((ours - other).mean())
    assert low < difference < high and low > 0.09
    ((alone_low, alone_high),) = mean_intervals(np.arange(200), ours[:, None], seed=0)
    assert high - low < 0.2 * (alone_high - alone_low)
