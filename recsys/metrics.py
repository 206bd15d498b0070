"""Where a target stands in the whole catalogue, and what follows from ranks and from lists.

Suffixes: Q = requests, I = items, K = places of a list, C = content columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MISS",
    "TargetRanks",
    "coverage",
    "intra_list_diversity",
    "ndcg_at",
    "novelty",
    "popularity_percentile",
    "recall_at",
    "reciprocal_rank",
    "target_ranks",
]

MISS = 2**62
"""Rank of a target that cannot be reached: every metric counts it as 0."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TargetRanks:
    """Where the targets of Q requests stand."""

    rank_Q: Ints
    """From 1; :data:`MISS` where the target stands in its own history."""
    reachable_Q: NDArray[np.bool_]
    """Whether the history filter leaves the target in."""
    tied_Q: NDArray[np.bool_]
    """Whether another item left in has exactly the score of a reachable target."""


def target_ranks(scores_QI: NDArray[np.float32], target_Q: Ints, exclude: Sequence[Ints]) -> TargetRanks:
    """Rank of each target among all items but those of its history.

    The rank is the number of items left in whose score is at least the target's, the target among them: exact ties
    count against the target.

        >>> scores = np.array([[0.9, 0.7, 0.5, 0.5, 0.1]], dtype=np.float32)
        >>> target_ranks(scores, np.array([2]), [np.array([0, -1])]).rank_Q  # left in: 1, 2, 3, 4; 1 and 3 stand ahead
        array([3])

    Args:
        scores_QI: [Q, I] scores of the whole catalogue, higher is better; the places of excluded items become -inf.
        target_Q: [Q] internal item ids.
        exclude: per request the items of all earlier events, repeats allowed; ids below 0 name no item.

    Raises:
        ValueError: shapes that differ, an id outside the catalogue, a score that is NaN.
    """
    num_requests, num_items = scores_QI.shape
    if len(target_Q) != num_requests or len(exclude) != num_requests:
        raise ValueError(
            f"scores are for {num_requests} requests, but there are {len(target_Q)} targets and {len(exclude)} "
            "histories; give one of each per row"
        )
    target_Q = np.asarray(target_Q, dtype=np.int64)
    lengths_Q = np.fromiter((len(items) for items in exclude), dtype=np.int64, count=num_requests)
    row_E = np.repeat(np.arange(num_requests), lengths_Q)
    item_E = np.concatenate([np.zeros(0, dtype=np.int64), *exclude])
    row_E, item_E = row_E[item_E >= 0], item_E[item_E >= 0]
    largest = max(int(target_Q.max(initial=-1)), int(item_E.max(initial=-1)))
    if int(target_Q.min(initial=0)) < 0 or largest >= num_items:
        raise ValueError(f"targets and excluded items must be internal ids below {num_items}")
    nan_Q = np.isnan(scores_QI).any(axis=1)
    if nan_Q.any():
        raise ValueError(f"the scores of request {int(np.flatnonzero(nan_Q)[0])} hold NaN; a rank needs numbers")
    place_Q = np.arange(num_requests)
    score_Q1 = scores_QI[place_Q, target_Q][:, None]
    scores_QI[row_E, item_E] = -np.inf
    rank_Q = np.count_nonzero(scores_QI >= score_Q1, axis=1).astype(np.int64)
    above_Q = np.count_nonzero(scores_QI > score_Q1, axis=1)
    for row in np.flatnonzero(np.isneginf(score_Q1[:, 0])):
        rank_Q[row] -= len(np.unique(item_E[row_E == row]))  # the excluded ones equal such a target, but are not in
    reachable_Q = np.ones(num_requests, dtype=np.bool_)
    reachable_Q[row_E[item_E == target_Q[row_E]]] = False
    return TargetRanks(
        rank_Q=np.where(reachable_Q, rank_Q, MISS),
        reachable_Q=reachable_Q,
        tied_Q=reachable_Q & (rank_Q - above_Q > 1),
    )


def recall_at(rank_Q: Ints, k: int) -> Floats:
    """[Q] 1 where the one target of a request is among the first k, else 0.

    >>> recall_at(np.array([1, 3, 11, MISS]), 10)
    array([1., 1., 0., 0.])
    """
    return (np.asarray(rank_Q) <= k).astype(np.float64)


def ndcg_at(rank_Q: Ints, k: int) -> Floats:
    """[Q] 1 / log2(rank + 1) where the one target of a request is among the first k, else 0.

    The best possible list has the target first and a gain of 1, so nothing is left to divide by.

    >>> ndcg_at(np.array([1, 3, 11, MISS]), 10)  # 1 / log2(2), 1 / log2(4)
    array([1. , 0.5, 0. , 0. ])
    """
    rank_Q = np.asarray(rank_Q)
    return np.where(rank_Q <= k, 1.0 / np.log2(np.minimum(rank_Q, k) + 1.0), 0.0)


def reciprocal_rank(rank_Q: Ints) -> Floats:
    """[Q] 1 / rank, 0 for a miss; the mean is the MRR over the full catalogue.

    >>> reciprocal_rank(np.array([1, 4, MISS]))
    array([1.  , 0.25, 0.  ])
    """
    rank_Q = np.asarray(rank_Q)
    return np.where(rank_Q < MISS, 1.0 / rank_Q, 0.0)


def coverage(list_QK: Ints, num_items: int) -> float:
    """Share of the catalogue that stands in at least one list (places of -1 are empty).

    >>> coverage(np.array([[0, 1], [1, -1]]), 8)  # items 0 and 1 of 8
    0.25
    """
    return len(np.unique(list_QK[list_QK >= 0])) / num_items


def novelty(list_QK: Ints, count_I: Ints) -> Floats:
    """[Q] mean surprise of a list in bits: -log2 of each item's share of the training events, one added to each item.

    NaN for an empty list.

    >>> novelty(np.array([[0, 1], [0, -1]]), np.array([3, 0, 0, 1]))  # shares (3 + 1) / 8 and (0 + 1) / 8: 1 and 3 bits
    array([2., 1.])
    """
    share_I = (count_I + 1.0) / (count_I.sum() + len(count_I))
    return _list_mean(list_QK, -np.log2(share_I))


def popularity_percentile(list_QK: Ints, count_I: Ints) -> Floats:
    """[Q] mean over a list of the share of the catalogue with fewer training events than the item, ties counted half.

    A list drawn evenly from the catalogue has 0.5, the most popular items near 1. NaN for an empty list.

    >>> popularity_percentile(np.array([[0, 2]]), np.array([5, 1, 1, 9]))  # (2 + 1/2) / 4 and (0 + 2/2) / 4
    array([0.4375])
    """
    ordered = np.sort(count_I)
    below_I = np.searchsorted(ordered, count_I, side="left")
    upto_I = np.searchsorted(ordered, count_I, side="right")
    return _list_mean(list_QK, (below_I + upto_I) / (2.0 * len(count_I)))


def intra_list_diversity(list_QK: Ints, vector_IC: NDArray[np.float32]) -> Floats:
    """[Q] mean of 1 - cosine over the pairs of a list; items without content (a zero vector) are left out.

    NaN for a list with fewer than two items that have content.

    >>> vectors = np.array([[2, 0], [0, 1], [1, 0], [0, 0]], dtype=np.float32)
    >>> intra_list_diversity(np.array([[0, 1, 2, 3]]), vectors).round(4)  # (1 + 0 + 1) / 3 pairs
    array([0.6667])
    """
    length_I = np.linalg.norm(vector_IC, axis=1)
    unit_IC = vector_IC / np.where(length_I > 0, length_I, 1.0)[:, None]
    out_Q = np.full(len(list_QK), np.nan)
    for low in range(0, len(list_QK), 4096):
        part_QK = list_QK[low : low + 4096]
        has_QK = (part_QK >= 0) & (length_I[part_QK] > 0)
        sum_QC = np.einsum("qkc,qk->qc", unit_IC[part_QK], has_QK.astype(np.float32))
        # The pairs of unit vectors sum to (|sum|^2 - n) / 2, without a [K, K] product.
        num_Q = has_QK.sum(axis=1)
        pairs_Q = num_Q * (num_Q - 1) / 2.0
        cosine_Q = ((sum_QC.astype(np.float64) ** 2).sum(axis=1) - num_Q) / 2.0
        np.divide(pairs_Q - cosine_Q, pairs_Q, out=out_Q[low : low + 4096], where=pairs_Q > 0)
    return out_Q


def _list_mean(list_QK: Ints, value_I: Floats) -> Floats:
    filled_QK = list_QK >= 0
    total_Q = np.where(filled_QK, value_I[list_QK], 0.0).sum(axis=1)
    num_Q = filled_QK.sum(axis=1)
    return np.divide(total_Q, num_Q, out=np.full(len(list_QK), np.nan), where=num_Q > 0)
