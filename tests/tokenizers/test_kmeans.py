"""k-means: nearest centroids to the last tie, means, and starts that leave no centroid unused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.tokenizers import kmeans as kmeans_module
from recsys.tokenizers.kmeans import centroid_means, distances, kmeans, kmeans_plus_plus, nearest
from recsys.tokenizers.protocol import Floats


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(
    num=st.integers(1, 30),
    width=st.integers(1, 5),
    centroids=st.integers(1, 9),
    scale=st.sampled_from([1e-6, 1.0, 1e5]),
    seed=st.integers(0, 2**16),
)
def test_nearest_is_the_first_of_the_closest_in_float64(
    num: int, width: int, centroids: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.integers(-2, 3, (num, width)) * scale).astype(np.float32)  # a coarse grid: many equal distances
    books = (rng.integers(-2, 3, (centroids, width)) * scale).astype(np.float32)
    exact = np.square(rows[:, None].astype(np.float64) - books[None]).sum(2)
    codes, squared = nearest(rows, books)
    np.testing.assert_array_equal(codes, exact.argmin(1))
    np.testing.assert_allclose(squared, exact.min(1), atol=1e-5 * max(scale**2, exact.max()))


def test_near_ties_are_settled_exactly_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normal(300, 40) + 100  # far from 0: the product alone is off by more than the centroids differ
    books = (np.full((6, 40), 100.0) + 1e-4 * np.random.default_rng(1).normal(size=(6, 40))).astype(np.float32)
    exact = np.square(rows[:, None].astype(np.float64) - books[None].astype(np.float64)).sum(2).argmin(1)
    assert (nearest(rows, books, settle=False)[0] != exact).any()
    np.testing.assert_array_equal(nearest(rows, books)[0], exact)
    monkeypatch.setattr(kmeans_module, "_SCORES_AT_ONCE", 42)
    monkeypatch.setattr(kmeans_module, "_PAIR_ENTRIES_AT_ONCE", 80)
    np.testing.assert_array_equal(nearest(rows, books)[0], exact)


def test_distances_and_means_are_those_of_a_loop() -> None:
    rows, before = normal(50, 3), normal(4, 3, seed=1)
    expected = [[np.square(row - book).sum() for book in before] for row in rows]
    np.testing.assert_allclose(distances(rows, before), expected, rtol=1e-5, atol=1e-5)
    codes = np.random.default_rng(2).choice([0, 2, 3], 50).astype(np.int32)
    means, counts = centroid_means(rows, codes, before)
    for code in (0, 2, 3):
        np.testing.assert_allclose(means[code], rows[codes == code].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(means[1], before[1])  # no rows: it stays
    np.testing.assert_array_equal(counts, np.bincount(codes, minlength=4))


def test_separated_groups_are_found() -> None:
    centres = 20 * np.eye(8, dtype=np.float32)
    rows = np.repeat(centres, 25, axis=0) + 0.1 * normal(200, 8)
    found = kmeans(rows, 8, np.random.default_rng(0))
    assert sorted(nearest(centres, found)[0].tolist()) == list(range(8))
    np.testing.assert_allclose(found[nearest(centres, found)[0]], centres, atol=0.1)


def test_every_step_lowers_the_error() -> None:
    rows = normal(400, 6)
    errors = []
    for steps in range(6):
        found = kmeans(rows, 16, np.random.default_rng(3), num_steps=steps)
        errors.append(float(nearest(rows, found)[1].sum()))
    assert all(later <= earlier * 1.0001 for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.9 * errors[0]


def test_rare_rows_get_a_centroid_where_there_are_as_many_centroids_as_different_rows() -> None:
    different = normal(12, 4)
    rows = np.concatenate([np.repeat(different[:1], 5000, axis=0), different])
    found = kmeans(rows, 12, np.random.default_rng(0))
    assert len(np.unique(nearest(rows, found)[0])) == 12
    assert nearest(rows, found)[1].max() < 1e-4


def test_seeds_are_different_rows_as_long_as_there_are_any() -> None:
    rows = np.repeat(normal(5, 3), 7, axis=0)
    seeds = kmeans_plus_plus(rows, 5, np.random.default_rng(0))
    assert len(np.unique(seeds, axis=0)) == 5
    assert kmeans_plus_plus(rows, 8, np.random.default_rng(0)).shape == (8, 3)  # and repeat after that
