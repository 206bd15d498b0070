"""What the evaluation asks of anything that retrieves or ranks.

Suffixes: Q = requests, I = items, R = slate rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from recsys.dataset import Dataset
    from recsys.events import Requests

__all__ = ["RankingScorer", "Scorer"]


@runtime_checkable
class Scorer(Protocol):
    """Scores the whole catalogue for requests; higher is better."""

    name: str

    def score(self, requests: Requests) -> NDArray[np.float32]:
        """[Q, I] scores from the first ``requests.end`` events of each user, before the history filter.

        The evaluation asks for a few thousand requests at a time and owns the array it gets: it may write into it.
        """
        ...


@runtime_checkable
class RankingScorer(Protocol):
    """Predicts what a user does with every row of a slate."""

    name: str

    def predict(self, dataset: Dataset, split: int) -> dict[str, NDArray[np.float32]]:
        """For each action name [R] probabilities over all rows of ``dataset.slates``; NaN where not predicted.

        Args:
            dataset: the prepared data.
            split: 1 = validation slates, 2 = test slates. A prediction may use what happened strictly before its
                slate's time and nothing else.
        """
        ...
