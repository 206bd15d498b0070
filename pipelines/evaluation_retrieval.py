"""Figures of ranked targets and lists, with their intervals.

Suffixes: Q = requests, M = figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bootstrap import mean_intervals, paired_difference
from recsys.dataset import Dataset
from recsys.metrics import (
    coverage,
    intra_list_diversity,
    ndcg_at,
    novelty,
    popularity_percentile,
    recall_at,
    reciprocal_rank,
)
from recsys.pipelines.segments import Segment, segments
from recsys.pipelines.targets import LIST_LENGTH, RankedTargets

__all__ = ["RECALL_AT", "figures_minus", "mean_figures", "ndcg_minus", "retrieval_row", "segment_rows"]

RECALL_AT = (5, 10, 100)
NDCG_AT = (5, 10)

Floats = NDArray[np.float64]


def rank_figures(rank_Q: NDArray[np.int64], depth: int | None = None) -> dict[str, Floats]:
    """[Q] figures by name; those that look further than ``depth`` places, where lists are so short, are left out."""
    figures = {f"recall@{k}": recall_at(rank_Q, k) for k in RECALL_AT if depth is None or k <= depth}
    figures |= {f"ndcg@{k}": ndcg_at(rank_Q, k) for k in NDCG_AT if depth is None or k <= depth}
    return figures | {"mrr": reciprocal_rank(rank_Q)}


def retrieval_row(ranked: RankedTargets, dataset: Dataset, *, seed: int, depth: int | None = None) -> dict[str, Any]:
    """Everything that one retriever's row holds.

    Args:
        ranked: its ranks and lists.
        dataset: what they were made on.
        seed: of the intervals.
        depth: places of the longest list, where there are lists only and not the ranks of all items.
    """
    count_I = dataset.train_item_counts()
    figures = rank_figures(ranked.rank_Q, depth)
    figures[f"novelty@{LIST_LENGTH}"] = novelty(ranked.list_QK, count_I)
    figures[f"popularity_bias@{LIST_LENGTH}"] = popularity_percentile(ranked.list_QK, count_I)
    if dataset.content is not None:
        figures[f"intra_list_diversity@{LIST_LENGTH}"] = intra_list_diversity(ranked.list_QK, dataset.content)
    row = _means(ranked.requests.user, figures, seed=seed)
    row[f"coverage@{LIST_LENGTH}"] = coverage(ranked.list_QK, dataset.num_items)
    row["num_tied"] = int(ranked.tied_Q.sum())
    return row


def segment_rows(
    ranked: RankedTargets, dataset: Dataset, *, seed: int, depth: int | None = None
) -> dict[str, dict[str, Any]]:
    """Figures of every segment; an empty one holds its number of users alone."""
    return {
        segment.name: _segment_row(segment, ranked, seed=seed, depth=depth)
        for segment in segments(dataset, ranked.requests)
    }


def ndcg_minus(ours: RankedTargets, other: RankedTargets, *, seed: int) -> dict[str, Any]:
    """NDCG@10 of ours less the other's over the same requests."""
    difference, interval = paired_difference(
        ours.requests.user, ndcg_at(ours.rank_Q, 10), ndcg_at(other.rank_Q, 10), seed=seed
    )
    return {"ndcg@10_minus": difference, "ndcg@10_minus_ci": list(interval)}


def figures_minus(ours: RankedTargets, other: RankedTargets, *, seed: int) -> dict[str, Any]:
    """Recall@10 and NDCG@10 of ours less the other's over the same requests."""
    difference, interval = paired_difference(
        ours.requests.user, recall_at(ours.rank_Q, 10), recall_at(other.rank_Q, 10), seed=seed
    )
    recall = {"recall@10_minus": difference, "recall@10_minus_ci": list(interval)}
    return recall | ndcg_minus(ours, other, seed=seed)


def mean_figures(ranked: RankedTargets, *, seed: int) -> dict[str, Any]:
    """Figures of ranks alone, with their intervals."""
    return _means(ranked.requests.user, rank_figures(ranked.rank_Q), seed=seed)


def _segment_row(segment: Segment, ranked: RankedTargets, *, seed: int, depth: int | None) -> dict[str, Any]:
    user_Q = ranked.requests.user[segment.inside_Q]
    row: dict[str, Any] = {"num_users": len(np.unique(user_Q)), "meaning": segment.meaning}
    if len(user_Q):
        row |= _means(user_Q, rank_figures(ranked.rank_Q[segment.inside_Q], depth), seed=seed)
    return row


def _means(user_Q: NDArray[np.int64], figures: dict[str, Floats], *, seed: int) -> dict[str, Any]:
    """Means and intervals over the requests that define a figure; one that no request defines is left out."""
    defined = {name: value_Q for name, value_Q in figures.items() if not np.isnan(value_Q).all()}
    row: dict[str, Any] = {name: float(np.nanmean(value_Q)) for name, value_Q in defined.items()}
    columns: Sequence[Floats] = list(defined.values())
    for name, interval in zip(defined, mean_intervals(user_Q, np.stack(columns, axis=1), seed=seed), strict=True):
        row[f"{name}_ci"] = list(interval)
    return row
