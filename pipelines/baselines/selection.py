"""The figure that settings are chosen by: NDCG@10 on validation, full ranking, history filtered.

Suffixes: Q = requests, I = items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from recsys.dataset import Dataset
    from recsys.events import Requests

__all__ = ["seen_items", "validation_ndcg", "validation_sample"]

Ints = NDArray[np.int64]

_CHUNK = 1024
MAX_USERS = 20_000
"""Validation users that choose settings; more only cost time."""


def validation_sample(dataset: Dataset) -> Requests:
    """Up to :data:`MAX_USERS` evenly spaced requests of the validation split."""
    requests = dataset.requests("validation")
    if len(requests) <= MAX_USERS:
        return requests
    return requests.rows(np.linspace(0, len(requests) - 1, MAX_USERS).astype(np.int64))


def seen_items(dataset: Dataset, requests: Requests) -> tuple[Ints, Ints]:
    """Row and item of every event of the histories, whatever its action."""
    query_N = np.repeat(np.arange(len(requests), dtype=np.int64), requests.end)
    first_Q = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(requests.end)])[:-1]
    row_N = np.arange(len(query_N), dtype=np.int64) + (dataset.events.offsets[requests.user] - first_Q)[query_N]
    return query_N, dataset.events.item[row_N]


def validation_ndcg(
    dataset: Dataset, score: Callable[[Requests], NDArray[np.float32]], requests: Requests | None = None
) -> float:
    """NDCG@10 of the next positive; ties count against the target, a target in its own history is a miss."""
    requests = validation_sample(dataset) if requests is None else requests
    gain = 0.0
    for start in range(0, len(requests), _CHUNK):
        part = requests.rows(slice(start, start + _CHUNK))
        score_QI = score(part)
        score_QI[seen_items(dataset, part)] = -np.inf
        own_Q = score_QI[np.arange(len(part)), part.target]
        rank_Q = (score_QI >= own_Q[:, None]).sum(1)
        gain += float((1 / np.log2(1 + rank_Q[(rank_Q <= 10) & np.isfinite(own_Q)])).sum())
    return gain / max(len(requests), 1)
