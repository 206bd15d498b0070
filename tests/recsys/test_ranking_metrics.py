"""Figures of predicted probabilities."""

from __future__ import annotations

from itertools import permutations
from math import log, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.ranking_metrics import auc, gauc, grouped_auc, logloss, ndcg_groups


def test_auc_by_hand_with_a_tie():
    yes = np.array([True, True, False, False])
    score = np.array([0.9, 0.4, 0.4, 0.1])
    assert auc(yes, score) == (1 + 1 + 0.5 + 1) / 4
    assert auc(yes, -score) == pytest.approx(1 - (1 + 1 + 0.5 + 1) / 4)
    assert auc(yes, np.zeros(4)) == 1 / 2
    assert np.isnan(auc(np.array([True, True]), np.array([0.1, 0.2])))
    assert np.isnan(auc(np.zeros(0, dtype=bool), np.zeros(0)))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), num_rows=st.integers(1, 30))
def test_grouped_auc_equals_counting_pairs(seed, num_rows):
    rng = np.random.default_rng(seed)
    yes, score = rng.random(num_rows) < 0.4, rng.integers(0, 4, num_rows) / 4
    group = rng.integers(0, 4, num_rows) * 10
    found = grouped_auc(yes, score, group)
    assert found.group_G.tolist() == sorted(set(group.tolist()))
    for g, value, rows in zip(found.group_G, found.auc_G, found.num_rows_G, strict=True):
        inside = np.flatnonzero(group == g)
        pairs = [
            (score[i] > score[j]) + (score[i] == score[j]) / 2 for i in inside for j in inside if yes[i] and not yes[j]
        ]
        assert rows == len(inside)
        assert value == pytest.approx(sum(pairs) / len(pairs)) if pairs else np.isnan(value)


def test_gauc_weighs_users_by_rows_and_skips_those_with_one_label():
    yes = np.array([1, 0, 0, 1, 0, 1, 1, 0, 0], dtype=bool)
    score = np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2])
    user = np.array([7, 7, 7, 8, 8, 9, 9, 6, 6])
    assert gauc(yes, score, user) == pytest.approx((3 * 1.0 + 2 * 0.0) / 5)
    assert np.isnan(gauc(yes[5:7], score[5:7], user[5:7]))
    # Scores of users are not compared with each other: a shift of one user changes the AUC and not the GAUC.
    assert gauc(yes, score + (user == 8), user) == gauc(yes, score, user)
    assert auc(yes, score + (user == 8)) != auc(yes, score)


def test_logloss_in_nats():
    assert logloss(np.array([True, False]), np.array([0.25, 0.5])) == pytest.approx((log(4) + log(2)) / 2)
    assert np.isfinite(logloss(np.array([True, False]), np.array([0.0, 1.0], dtype=np.float32)))
    assert np.isnan(logloss(np.zeros(0, dtype=bool), np.zeros(0)))


def test_slate_ndcg_by_hand():
    yes = np.array([0, 1, 1, 0, 0], dtype=bool)
    score = np.array([0.9, 0.8, 0.7, 0.5, 0.4])
    slates, value = ndcg_groups(yes, score, np.array([3, 3, 3, 5, 5]))
    assert slates.tolist() == [3]  # slate 5 has nothing to find
    assert value[0] == pytest.approx((1 / log2(3) + 1 / log2(4)) / (1 + 1 / log2(3)))
    _, cut = ndcg_groups(yes, score, np.array([3, 3, 3, 5, 5]), k=2)
    assert cut[0] == pytest.approx((1 / log2(3)) / (1 + 1 / log2(3)))
    _, best = ndcg_groups(yes, score, np.zeros(5), k=1)
    assert best[0] == 0.0


def test_slate_ndcg_of_ties_is_the_mean_over_their_orders():
    yes, score = np.array([1, 0, 0, 1], dtype=bool), np.array([0.5, 0.5, 0.9, 0.5])
    tied = [i for i in range(4) if score[i] == 0.5]
    gains = [sum(yes[i] / log2(place + 3) for place, i in enumerate(order[:2])) for order in permutations(tied)]
    _, value = ndcg_groups(yes, score, np.zeros(4), k=3)
    assert value[0] == pytest.approx(np.mean(gains) / (1 + 1 / log2(3)))


def test_predictions_that_are_missing_are_an_error():
    with pytest.raises(ValueError, match="score 1 is NaN"):
        auc(np.array([True, False]), np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="2 labels but 1 scores"):
        logloss(np.array([True, False]), np.array([0.5]))
