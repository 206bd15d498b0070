"""Ranks of targets and the figures made of ranks and lists."""

from __future__ import annotations

import doctest
import importlib
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.metrics import (
    MISS,
    coverage,
    intra_list_diversity,
    ndcg_at,
    novelty,
    popularity_percentile,
    recall_at,
    reciprocal_rank,
    target_ranks,
)


def ranks_of(scores, targets, exclude):
    histories = [np.array(items, dtype=np.int64) for items in exclude]
    return target_ranks(np.array(scores, dtype=np.float32), np.array(targets), histories)


@pytest.mark.parametrize("name", ["metrics", "ranking_metrics", "bootstrap"])
def test_worked_cases_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"recsys.{name}"))
    assert result.attempted >= 3 and result.failed == 0


def test_history_items_do_not_stand_ahead():
    scores = [[5, 4, 3, 2], [5, 4, 3, 2]]
    assert ranks_of(scores, [2, 2], [[0, 0, -1], []]).rank_Q.tolist() == [2, 3]


def test_ties_count_against_the_target_and_are_counted():
    found = ranks_of([[1, 1, 1, 0], [1, 1, 1, 0], [3, 2, 1, 0]], [0, 0, 0], [[], [1, 2], [3]])
    assert found.rank_Q.tolist() == [3, 1, 1]
    assert found.tied_Q.tolist() == [True, False, False]  # what ties but is excluded does not count


def test_target_in_its_own_history_is_a_miss_of_every_metric():
    found = ranks_of([[9, 1], [9, 1]], [0, 0], [[0], [1]])
    assert found.reachable_Q.tolist() == [False, True]
    assert found.rank_Q.tolist() == [MISS, 1]
    for figure in (recall_at(found.rank_Q, 10), ndcg_at(found.rank_Q, 10), reciprocal_rank(found.rank_Q)):
        assert figure.tolist() == [0.0, 1.0]
    assert (1.0 / found.rank_Q)[0] < 1e-18 and np.log2(found.rank_Q + 1)[0] > 60  # plain arithmetic works too


def test_a_target_without_a_score_stands_last_among_those_left_in():
    low = -np.inf
    found = ranks_of([[1, low, low, low, low]], [1], [[0, 3, 3]])
    assert found.rank_Q.tolist() == [3]  # items 1, 2 and 4 are left in, and all tie
    assert found.tied_Q.tolist() == [True]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), num_items=st.integers(1, 9), num_requests=st.integers(0, 5))
def test_ranks_equal_counting_by_hand(seed, num_items, num_requests):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (num_requests, num_items)).astype(np.float32)
    scores[scores == -2] = -np.inf
    targets = rng.integers(0, num_items, num_requests)
    exclude = [rng.integers(-1, num_items, rng.integers(0, 6)) for _ in range(num_requests)]
    found = target_ranks(scores.copy(), targets, exclude)
    for q in range(num_requests):
        left = [i for i in range(num_items) if i not in exclude[q]]
        if targets[q] not in left:
            assert found.rank_Q[q] == MISS and not found.reachable_Q[q] and not found.tied_Q[q]
            continue
        own = scores[q, targets[q]]
        assert found.rank_Q[q] == sum(scores[q, i] >= own for i in left)
        assert found.tied_Q[q] == (sum(scores[q, i] == own for i in left) > 1)
        assert found.reachable_Q[q]


def test_bad_scores_and_ids_are_errors():
    with pytest.raises(ValueError, match="request 1 hold NaN"):
        ranks_of([[1, 2], [1, np.nan]], [0, 0], [[], []])
    with pytest.raises(ValueError, match="below 2"):
        ranks_of([[1, 2]], [2], [[]])
    with pytest.raises(ValueError, match="below 2"):
        ranks_of([[1, 2]], [-1], [[]])
    with pytest.raises(ValueError, match="below 2"):
        ranks_of([[1, 2]], [0], [[7]])
    with pytest.raises(ValueError, match="1 targets and 2 histories"):
        ranks_of([[1, 2]], [0], [[], []])


def test_ndcg_recall_and_mrr_by_hand():
    ranks = np.array([1, 2, 10, 11, 500])
    expected = [1.0, 1 / log2(3), 1 / log2(11), 0.0, 0.0]
    np.testing.assert_allclose(ndcg_at(ranks, 10), expected)
    assert recall_at(ranks, 10).tolist() == [1, 1, 1, 0, 0]
    assert recall_at(ranks, 1000).tolist() == [1, 1, 1, 1, 1]  # k beyond every list
    np.testing.assert_allclose(reciprocal_rank(ranks), [1, 1 / 2, 1 / 10, 1 / 11, 1 / 500])
    assert len(ndcg_at(np.zeros(0, dtype=np.int64), 10)) == 0


def test_coverage_counts_each_item_once():
    assert coverage(np.array([[0, 1, -1], [1, 2, -1]]), 4) == 3 / 4
    assert coverage(np.full((2, 3), -1), 4) == 0.0


def test_novelty_by_hand():
    counts = np.array([5, 1, 0])  # shares of 9: 6, 2, 1
    bits = [log2(9 / 6), log2(9 / 2), log2(9 / 1)]
    found = novelty(np.array([[0, 1], [2, -1], [-1, -1]]), counts)
    np.testing.assert_allclose(found[:2], [(bits[0] + bits[1]) / 2, bits[2]])
    assert np.isnan(found[2])


def test_popularity_bias_of_the_whole_catalogue_is_one_half():
    counts = np.array([7, 7, 0, 2, 9])
    assert popularity_percentile(np.arange(5)[None], counts)[0] == pytest.approx(1 / 2)
    assert popularity_percentile(np.array([[4, -1]]), counts)[0] == pytest.approx((4 + 1 / 2) / 5)
    assert popularity_percentile(np.array([[0]]), counts)[0] == pytest.approx((2 + 2 / 2) / 5)


def test_diversity_equals_the_mean_over_pairs():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((8, 3)).astype(np.float32)
    vectors[5] = 0
    lists = np.array([[0, 1, 2, 3], [4, 5, 6, -1], [5, 7, -1, -1]])
    unit = vectors[:7] / np.maximum(np.linalg.norm(vectors[:7], axis=1, keepdims=True), 1e-9)
    pairs = [1 - unit[i] @ unit[j] for i in range(4) for j in range(i)]
    found = intra_list_diversity(lists, vectors)
    np.testing.assert_allclose(found[:2], [sum(pairs) / 6, 1 - unit[4] @ unit[6]], atol=1e-6)
    assert np.isnan(found[2])  # one item with content makes no pair
