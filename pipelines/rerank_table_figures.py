"""Figures of reordered lists that the rows of a rerank table share.

Suffixes: Q = lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from recsys.bootstrap import mean_intervals, paired_difference
from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.pipelines.rerank_lists import RerankLists, lists_of

__all__ = ["change", "lists_like", "tau"]

Orders = Sequence[Sequence[Any]]


def lists_like(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    row: Mapping[str, Any],
    number: int,
    users: NDArray[np.int64] | None = None,
) -> RerankLists:
    """The first lists of those that a row was measured on.

    Args:
        row: holds ``top``, ``seed``, ``retriever``, ``rank_by`` and ``every``.
        number: how many.
        users: internal users to draw from; None = all of the split.
    """
    return lists_of(
        bundle, dataset, split, row["top"], number, row["seed"], row["retriever"], row["rank_by"],
        hits_only=not row["every"], users=users,
    )  # fmt: skip


def change(lists: RerankLists, orders: Orders, other: Orders | None, *, seed: int) -> dict[str, Any]:
    """NDCG@10 of some orders less that of others (None = the lists as they are), with paired intervals: over lists with
    a target and over all users that were looked at."""
    ours_Q, other_Q, hit_Q = lists.ndcg(orders), lists.ndcg(other), lists.hit_Q
    absent = np.zeros(lists.num_asked - len(lists))
    user_Q = np.concatenate([lists.user_Q, -1 - np.arange(len(absent))]).astype(np.int64)
    more, interval = paired_difference(
        user_Q, np.concatenate([ours_Q, absent]), np.concatenate([other_Q, absent]), seed=seed
    )
    out: dict[str, Any] = {"ndcg@10_change": more, "ndcg@10_change_ci": list(interval)}
    if hit_Q.any():
        difference_Q = (ours_Q - other_Q)[hit_Q]
        (interval,) = mean_intervals(lists.user_Q[hit_Q], difference_Q[:, None], seed=seed)
        out |= {"ndcg@10_hits_change": float(difference_Q.mean()), "ndcg@10_hits_change_ci": list(interval)}
    return out


def tau(order: Sequence[Any], other: Sequence[Any]) -> float:
    """Kendall's τ of two orders of the same ids."""
    if len(order) < 2:
        return 1.0
    place = {item_id: at for at, item_id in enumerate(other)}
    return float(kendalltau(range(len(order)), [place[item_id] for item_id in order]).statistic)
