"""Balanced assignments: shares, the greedy order, Sinkhorn's marginals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.tokenizers import balanced as balanced_module
from recsys.tokenizers.balanced import (
    balanced_codes,
    balanced_means,
    capacity_codes,
    sinkhorn_codes,
    sinkhorn_log_plan,
)
from recsys.tokenizers.kmeans import nearest
from recsys.tokenizers.protocol import Codes, Floats


def greedy_codes(rows_ND: Floats, centroids_KD: Floats) -> Codes:
    """All pairs in the order of (distance, row, centroid), taken if the row is free and the centroid has a place."""
    num, num_codes = len(rows_ND), len(centroids_KD)
    squared = np.square(rows_ND[:, None].astype(np.float64) - centroids_KD[None]).sum(2)
    places, spare = divmod(num, num_codes)
    codes, count = np.full(num, -1, np.int32), np.zeros(num_codes, int)
    for _, row, code in sorted((squared[i, k], i, k) for i in range(num) for k in range(num_codes)):
        extra = count[code] == places and spare > 0
        if codes[row] < 0 and (count[code] < places or extra):
            codes[row] = code
            count[code] += 1
            spare -= extra
    return codes


@settings(deadline=None, max_examples=60)
@given(
    num=st.integers(1, 40),
    codes=st.integers(1, 12),
    width=st.integers(1, 3),
    grid=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_capacity_is_the_greedy_assignment_over_all_pairs(
    num: int, codes: int, width: int, grid: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = min(codes, num)
    rows = rng.integers(-grid, grid + 1, (num, width)).astype(np.float32)  # whole numbers: ties, and exact distances
    centroids = rng.integers(-grid, grid + 1, (codes, width)).astype(np.float32)
    found = capacity_codes(rows, centroids)
    np.testing.assert_array_equal(found, greedy_codes(rows, centroids))
    count = np.bincount(found, minlength=codes)
    assert set(count.tolist()) <= {num // codes, -(-num // codes)}


def test_a_row_misses_a_centroid_only_to_nearer_rows() -> None:
    rng = np.random.default_rng(4)
    rows = (rng.normal(size=(1003, 5)) * [5, 1, 1, 1, 1]).astype(np.float32)
    centroids = rows[:20].copy()
    found = capacity_codes(rows, centroids)
    squared = np.square(rows[:, None].astype(np.float64) - centroids[None]).sum(2)
    own = squared[np.arange(len(rows)), found]
    farthest = np.array([own[found == code].max() for code in range(20)])
    count = np.bincount(found, minlength=20)
    for code in range(20):
        would_rather = squared[:, code] < own - 1e-4
        if count[code] == count.max():
            assert (squared[would_rather, code] >= farthest[code] - 1e-4).all()


def test_capacity_wants_a_row_for_every_code() -> None:
    with pytest.raises(ValueError, match="3 rows cannot fill 4 codes; give at most 3 codes"):
        capacity_codes(np.eye(3, dtype=np.float32), np.ones((4, 3), np.float32))


def plan_in_float64(distance: np.ndarray, epsilon: float, rounds: int) -> np.ndarray:
    """Sinkhorn's scalings as they are written down."""
    half = (distance.max() - distance.min()) / 2
    plan = np.exp(-(distance - distance.min() - half) / half / epsilon)
    for _ in range(rounds):
        plan /= plan.sum(0) * plan.shape[1]
        plan /= plan.sum(1, keepdims=True) * plan.shape[0]
    return plan


@settings(deadline=None, max_examples=25)
@given(
    num=st.integers(2, 60),
    codes=st.integers(2, 9),
    epsilon=st.sampled_from([0.05, 0.2, 1.0]),
    rounds=st.integers(1, 80),
    seed=st.integers(0, 2**16),
)
def test_log_plan_is_the_plan_of_plain_scalings(num: int, codes: int, epsilon: float, rounds: int, seed: int) -> None:
    distance = np.random.default_rng(seed).random((num, codes)) * 7
    plan = sinkhorn_log_plan(torch.from_numpy(distance), epsilon=epsilon, num_rounds=rounds, tolerance=0.0).exp()
    np.testing.assert_allclose(plan.numpy(), plan_in_float64(distance, epsilon, rounds), rtol=2e-3, atol=1e-6)


def test_marginals_are_uniform() -> None:
    distance = torch.from_numpy(np.random.default_rng(0).random((500, 16))) + torch.linspace(0, 0.5, 16)
    plan = sinkhorn_log_plan(distance, epsilon=0.02, num_rounds=2000, tolerance=1e-3).exp()
    torch.testing.assert_close(plan.sum(1), torch.full((500,), 1 / 500), rtol=1e-4, atol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((16,), 1 / 16), rtol=2e-3, atol=0)


@pytest.mark.parametrize("epsilon", [1e-5, 3e-3])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_log_plan_stays_finite_where_exponentials_do_not(epsilon: float, scale: float) -> None:
    distance = torch.from_numpy(np.random.default_rng(0).random((200, 8)) * scale)
    distance[:, 0] = 0.0  # everybody's nearest
    log_plan = sinkhorn_log_plan(distance, epsilon=epsilon, num_rounds=200)
    assert torch.isfinite(log_plan).all()
    torch.testing.assert_close(log_plan.exp().sum(1), torch.full((200,), 1 / 200), rtol=1e-2, atol=0)
    assert math.isclose(float(sinkhorn_log_plan(torch.ones(4, 2)).exp().sum()), 1.0, rel_tol=1e-5)


def test_sinkhorn_uses_codes_more_equally_than_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2000, 6)).astype(np.float32)
    centroids = (rng.normal(size=(16, 6)) * np.repeat([[1], [2]], 8, axis=0)).astype(np.float32)

    def largest_share(codes: Codes) -> float:
        return np.bincount(codes, minlength=16).max() / len(codes)

    plain = largest_share(nearest(rows, centroids)[0])
    assert largest_share(sinkhorn_codes(rows, centroids)) < 1.6 / 16 < 3 / 16 < plain
    monkeypatch.setattr(balanced_module, "_PLAN_ENTRIES", 16 * 500)  # in four parts
    assert largest_share(sinkhorn_codes(rows, centroids)) < 2 / 16


def test_means_under_sinkhorn_are_those_of_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(400, 3)).astype(np.float32)
    centroids = rows[:8].copy()
    whole = balanced_means(rows, centroids, "sinkhorn", 2)
    by_hand = centroids
    for _ in range(2):
        codes = sinkhorn_codes(rows, by_hand)
        by_hand = np.stack([rows[codes == code].mean(0) for code in range(8)])
    np.testing.assert_allclose(whole, by_hand, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(balanced_module, "_PLAN_ENTRIES", 8 * 100)  # four parts
    part_N = np.sort(np.array_split(np.random.default_rng(0).permutation(400), 4)[0])
    once = balanced_means(rows, centroids, "sinkhorn", 1)
    codes = sinkhorn_codes(rows[part_N], centroids)
    for code in range(8):
        np.testing.assert_allclose(once[code], rows[part_N][codes == code].mean(0), rtol=1e-4, atol=1e-6)
    assert np.abs(once - balanced_means(rows, centroids, "capacity", 1)).max() > 1e-3


def test_balance_none_is_nearest_and_moves_nothing() -> None:
    rng = np.random.default_rng(1)
    rows, centroids = (rng.normal(size=(num, 3)).astype(np.float32) for num in (40, 5))
    np.testing.assert_array_equal(balanced_codes(rows, centroids, "none"), nearest(rows, centroids)[0])
    assert balanced_means(rows, centroids, "none", 5) is centroids
    once = balanced_means(rows, centroids, "capacity", 1)
    codes = capacity_codes(rows, centroids)
    for code in range(5):
        np.testing.assert_allclose(once[code], rows[codes == code].mean(0), rtol=1e-5)
