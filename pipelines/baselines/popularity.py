"""Popularity: the same list for everybody.

Suffixes: N = events, I = items, Q = requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recsys.pipelines.baselines.selection import validation_ndcg, validation_sample
from recsys.pipelines.baselines.training_matrix import is_training

if TYPE_CHECKING:
    from recsys.dataset import Dataset
    from recsys.events import Requests

__all__ = ["PopularityScorer", "fit_popularity", "fit_recent_popularity"]

HALF_LIFE_SHARES = (0.01, 0.03, 0.1, 0.3)
"""Half-lives tried for recent popularity, as shares of the time that the training events span."""


class PopularityScorer:
    """Scores every item alike for everybody."""

    def __init__(self, name: str, score_I: NDArray[Any], settings: dict[str, float]) -> None:
        self.name = name
        self.settings = settings
        self._score_I = score_I.astype(np.float32)

    def score(self, requests: Requests) -> NDArray[np.float32]:
        """[Q, I] the same row for every request."""
        return np.tile(self._score_I, (len(requests), 1))


def fit_popularity(dataset: Dataset) -> PopularityScorer:
    """Number of positive training events of each item."""
    row_N = np.flatnonzero(is_training(dataset) & dataset.is_positive())
    count_I = np.bincount(dataset.events.item[row_N], minlength=dataset.num_items)
    return PopularityScorer("popularity", count_I, {})


def fit_recent_popularity(dataset: Dataset) -> PopularityScorer:
    """The same count, an event weighing half as much a half-life earlier; half-life chosen on validation."""
    row_N = np.flatnonzero(is_training(dataset) & dataset.is_positive())
    item_N, time_N = dataset.events.item[row_N], dataset.events.timestamp[row_N]
    newest = int(time_N.max(initial=0))
    span = max(newest - int(time_N.min(initial=newest)), 1)
    requests = validation_sample(dataset)
    tried: list[tuple[float, int, PopularityScorer]] = []
    for share in HALF_LIFE_SHARES:
        weight_N = np.exp2((time_N - newest) / (share * span))
        count_I = np.bincount(item_N, weight_N, minlength=dataset.num_items)
        settings = {"half_life_share": share, "half_life": share * span}
        scorer = PopularityScorer("recent_popularity", count_I, settings)
        tried.append((validation_ndcg(dataset, scorer.score, requests), -len(tried), scorer))
    return max(tried, key=lambda entry: entry[:2])[2]
