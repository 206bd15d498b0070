"""How well predicted probabilities order and calibrate the rows of slates.

Suffixes: R = rows with a known label, G = groups (users or slates).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GroupedAuc", "auc", "calibration_error", "gauc", "grouped_auc", "logloss", "logloss_rows", "ndcg_groups"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 in the log loss; float32 knows none nearer to 1."""


def auc(yes_R: Bools, score_R: NDArray[np.floating]) -> float:
    """Probability that a *yes* row scores above a *no* row, ties counted half; exact, by ranks. NaN with one label.

    >>> auc(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))  # pairs: 1, 1, 1/2, 1 of 4
    0.875
    """
    _check(yes_R, score_R)
    return float(grouped_auc(yes_R, score_R, np.zeros(len(yes_R), dtype=np.int64)).auc_G[0]) if len(yes_R) else np.nan


def gauc(yes_R: Bools, score_R: NDArray[np.floating], user_R: Ints) -> float:
    """Mean of the users' own AUCs, weighted by their rows; only users with both labels count. NaN without any.

    >>> yes = np.array([True, False, False, True, False, True])
    >>> gauc(yes, np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.5]), np.array([7, 7, 7, 8, 8, 9]))  # (3 * 1 + 2 * 0) / 5
    0.6
    """
    per_user = grouped_auc(yes_R, score_R, user_R)
    both_G = ~np.isnan(per_user.auc_G)
    if not both_G.any():
        return float("nan")
    return float(np.average(per_user.auc_G[both_G], weights=per_user.num_rows_G[both_G]))


@dataclass(frozen=True, slots=True)
class GroupedAuc:
    """One AUC per group that has rows, groups in rising order."""

    group_G: Ints
    auc_G: Floats
    """NaN where the group has one label only."""
    num_rows_G: Ints


def grouped_auc(yes_R: Bools, score_R: NDArray[np.floating], group_R: Ints) -> GroupedAuc:
    """The AUC inside every group, ties counted half."""
    _check(yes_R, score_R)
    group_G, index_R = np.unique(group_R, return_inverse=True)
    order_R = np.lexsort((score_R, index_R))
    index_R, score_R, yes_R = index_R[order_R], score_R[order_R], yes_R[order_R]
    num_rows_G = np.bincount(index_R, minlength=len(group_G))
    start_G = np.cumsum(num_rows_G) - num_rows_G
    first_R = np.ones(len(index_R), dtype=np.bool_)
    first_R[1:] = (index_R[1:] != index_R[:-1]) | (score_R[1:] != score_R[:-1])
    tie_R = np.cumsum(first_R) - 1
    low_T = np.flatnonzero(first_R)
    high_T = np.append(low_T[1:], len(index_R))
    rank_R = ((low_T + high_T + 1) / 2.0)[tie_R] - start_G[index_R]  # from 1, the mean one among ties
    num_yes_G = np.bincount(index_R, weights=yes_R, minlength=len(group_G))
    rank_sum_G = np.bincount(index_R, weights=rank_R * yes_R, minlength=len(group_G))
    pairs_G = num_yes_G * (num_rows_G - num_yes_G)
    wins_G = rank_sum_G - num_yes_G * (num_yes_G + 1) / 2.0
    auc_G = np.divide(wins_G, pairs_G, out=np.full(len(group_G), np.nan), where=pairs_G > 0)
    return GroupedAuc(group_G, auc_G, num_rows_G)


def calibration_error(yes_R: Bools, prob_R: NDArray[np.floating], bins: int = 15) -> float:
    """Expected calibration error: mean over rows of |mean probability − rate| of their group. NaN without rows.

    Groups hold equally many rows by rising probability (adaptive groups, Nixon et al., arXiv 1904.01685).

    >>> yes = np.array([False, False, True, True])
    >>> calibration_error(yes, np.array([0.1, 0.3, 0.5, 0.9]), bins=2)  # (|.2 - 0| + |.7 - 1|) / 2
    0.25
    """
    _check(yes_R, prob_R)
    order_R = np.argsort(prob_R, kind="stable")
    groups = [rows for rows in np.array_split(order_R, bins) if len(rows)]
    gaps = [abs(float(prob_R[rows].mean()) - float(yes_R[rows].mean())) * len(rows) for rows in groups]
    return sum(gaps) / len(yes_R) if len(yes_R) else float("nan")


def logloss_rows(yes_R: Bools, prob_R: NDArray[np.floating]) -> Floats:
    """[R] -log of the probability that each row's label was given, in nats."""
    _check(yes_R, prob_R)
    prob_R = np.clip(np.asarray(prob_R, dtype=np.float64), CLIP, 1.0 - CLIP)
    return -np.log(np.where(yes_R, prob_R, 1.0 - prob_R))


def logloss(yes_R: Bools, prob_R: NDArray[np.floating]) -> float:
    """Mean log loss in nats; NaN without rows.

    >>> loss = logloss(np.array([True, False]), np.array([0.5, 0.75]))
    >>> bool(np.isclose(loss, (np.log(2) + np.log(4)) / 2))
    True
    """
    return float(logloss_rows(yes_R, prob_R).mean()) if len(yes_R) else float("nan")


def ndcg_groups(
    yes_R: Bools, score_R: NDArray[np.floating], group_R: Ints, k: int = 10
) -> tuple[Ints, NDArray[np.float64]]:
    """nDCG@k of every group with a *yes*, rows ordered by score; for ties the mean over their orders.

    >>> yes = np.array([False, True, True, False, False])
    >>> ndcg_groups(yes, np.array([0.9, 0.8, 0.3, 0.3, 0.7]), np.array([1, 1, 4, 4, 5]))[1].round(4)
    array([0.6309, 0.8155])

    Group 1: 1 / log2(3) over 1. Group 4: a tie over both places, (1 / log2(2) + 1 / log2(3)) / 2. Group 5 has no *yes*.

    Returns:
        The groups in rising order, and their nDCG.
    """
    _check(yes_R, score_R)
    group_G, index_R = np.unique(group_R, return_inverse=True)
    order_R = np.lexsort((-score_R, index_R))
    index_R, score_R, yes_R = index_R[order_R], score_R[order_R], yes_R[order_R]
    num_rows_G = np.bincount(index_R, minlength=len(group_G))
    place_R = np.arange(len(index_R)) - (np.cumsum(num_rows_G) - num_rows_G)[index_R]
    discount_R = np.where(place_R < k, 1.0 / np.log2(place_R + 2.0), 0.0)
    first_R = np.ones(len(index_R), dtype=np.bool_)
    first_R[1:] = (index_R[1:] != index_R[:-1]) | (score_R[1:] != score_R[:-1])
    tie_R = np.cumsum(first_R) - 1
    discount_R = (np.bincount(tie_R, weights=discount_R) / np.bincount(tie_R))[tie_R]
    gain_G = np.bincount(index_R, weights=discount_R * yes_R, minlength=len(group_G))
    num_yes_G = np.bincount(index_R, weights=yes_R, minlength=len(group_G)).astype(np.int64)
    best_K = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
    has_G = num_yes_G > 0
    return group_G[has_G], gain_G[has_G] / best_K[np.minimum(num_yes_G[has_G], k)]


def _check(yes_R: Bools, score_R: NDArray[np.floating]) -> None:
    if len(yes_R) != len(score_R):
        raise ValueError(f"{len(yes_R)} labels but {len(score_R)} scores; give one score per row")
    if np.isnan(score_R).any():
        raise ValueError(f"score {int(np.flatnonzero(np.isnan(score_R))[0])} is NaN; predict every row")
