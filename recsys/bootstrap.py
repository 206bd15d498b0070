"""Percentile intervals over users: how much a figure would move with another sample of them.

Suffixes: U = users, M = figures, B = resamples, Q = requests.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUM_RESAMPLES", "Interval", "bounds", "mean_intervals", "paired_difference", "per_user", "resampled"]

NUM_RESAMPLES = 1000
LEVEL = 0.95

Floats = NDArray[np.float64]
Interval = tuple[float, float]


def resampled(
    figures: Callable[[Floats], Floats], num_users: int, *, seed: int, resamples: int = NUM_RESAMPLES
) -> Floats:
    """[B, M] figures of resamples in which as many users are drawn, with replacement, as there are.

    Args:
        figures: from [U] weights, how often each user was drawn, to [M] figures; NaN where a resample defines none.
        num_users: users to draw from.
        seed: of the draws. With the same seed and users every call sees the same draws, so differences are paired.
        resamples: how many, B.
    """
    rows = []
    for resample in range(resamples):
        drawn = np.random.default_rng([seed, resample]).integers(0, num_users, num_users)
        rows.append(figures(np.bincount(drawn, minlength=num_users).astype(np.float64)))
    return np.array(rows, dtype=np.float64)


def bounds(figures_BM: Floats) -> list[Interval]:
    """The middle 95 % of each column, NaN left out; (NaN, NaN) where no resample defined the figure.

    >>> bounds(np.arange(101.0)[:, None])  # the 2.5th and the 97.5th percentile
    [(2.5, 97.5)]
    """
    tail = 100.0 * (1.0 - LEVEL) / 2.0
    intervals = []
    for column_B in figures_BM.T:
        defined_B = column_B[~np.isnan(column_B)]
        low, high = np.percentile(defined_B, [tail, 100.0 - tail]) if len(defined_B) else (np.nan, np.nan)
        intervals.append((round(float(low), 12), round(float(high), 12)))
    return intervals


def per_user(user_Q: NDArray[np.int64], value_QM: Floats) -> tuple[Floats, Floats]:
    """[U, M] sums of each user's values and how many there are, NaN left out; users in rising order."""
    _, index_Q = np.unique(user_Q, return_inverse=True)
    num_users = int(index_Q.max(initial=-1)) + 1
    sums = [np.bincount(index_Q, np.nan_to_num(column), minlength=num_users) for column in value_QM.T]
    counts = [np.bincount(index_Q, ~np.isnan(column), minlength=num_users) for column in value_QM.T]
    return np.stack(sums, axis=1), np.stack(counts, axis=1)


def mean_intervals(
    user_Q: NDArray[np.int64], value_QM: Floats, *, seed: int, resamples: int = NUM_RESAMPLES
) -> list[Interval]:
    """One interval per column: of the mean over requests whose value is no NaN, users drawn with all their requests.

    >>> mean_intervals(np.array([0, 1, 2]), np.array([[2.0], [2.0], [2.0]]), seed=0)  # nothing varies
    [(2.0, 2.0)]
    """
    sum_UM, count_UM = per_user(user_Q, value_QM)

    def means(weight_U: Floats) -> Floats:
        count_M = weight_U @ count_UM
        return np.divide(weight_U @ sum_UM, count_M, out=np.full(len(count_M), np.nan), where=count_M > 0)

    return bounds(resampled(means, len(sum_UM), seed=seed, resamples=resamples))


def paired_difference(
    user_Q: NDArray[np.int64], ours_Q: Floats, other_Q: Floats, *, seed: int, resamples: int = NUM_RESAMPLES
) -> tuple[float, Interval]:
    """Mean of ours - other over the same requests, and its interval.

    >>> paired_difference(np.array([0, 1]), np.array([0.75, 0.5]), np.array([0.5, 0.25]), seed=0)  # 0.25 for everybody
    (0.25, (0.25, 0.25))
    """
    difference_Q = np.asarray(ours_Q, dtype=np.float64) - np.asarray(other_Q, dtype=np.float64)
    (interval,) = mean_intervals(user_Q, difference_Q[:, None], seed=seed, resamples=resamples)
    return float(difference_Q.mean()), interval
