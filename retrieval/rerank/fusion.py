"""One score from two: that of the order so far and that of a reranker.

Both are standardised within the list, so that one weight serves all lists, retrievers and rerankers.
Suffixes: C = candidates of a list, Q = lists, W = weights tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.retrieval.rerank.result import RerankResult

__all__ = [
    "WEIGHTS",
    "ChosenWeight",
    "JudgedList",
    "choose_weight",
    "fused_places",
    "rerank_scores",
    "standardised",
]

WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0)
"""Tried for the reranker's standardised score; the earlier one counts 1."""
STANDARD_ERRORS = 2.0
"""By which a gain must exceed 0: a weight fits the lists it was chosen on."""
NUM_PLACES = 10
"""Places of a list that count."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def standardised(score_C: Sequence[float] | Floats) -> Floats:
    """[C] scores less their mean, in standard deviations; zeros where all are equal or one is no number.

    >>> standardised([1.0, 3.0])
    array([-1.,  1.])
    """
    value_C = np.asarray(score_C, dtype=np.float64)
    if not len(value_C) or not np.isfinite(value_C).all():
        return np.zeros(len(value_C))
    largest = np.abs(value_C).max()
    if largest == 0:
        return np.zeros(len(value_C))
    value_C = value_C / largest  # whose square is always finite
    spread = value_C.std()
    if spread <= 1e-12:
        return np.zeros(len(value_C))
    scaled_C: Floats = (value_C - value_C.mean()) / spread
    return scaled_C


def rerank_scores(result: RerankResult) -> Floats:
    """[C] scores of a result in the order of its request: the reranker's own, or 1 / place where it gave an order only
    (or scores that are no numbers)."""
    if result.scores is not None and np.isfinite(result.scores).all():
        return np.asarray(result.scores, dtype=np.float64)
    place = {item_id: at for at, item_id in enumerate(result.ids, start=1)}
    return np.array([1.0 / place[item_id] for item_id in result.candidates], dtype=np.float64)


def fused_places(earlier_C: Sequence[float] | Floats, rerank_C: Sequence[float] | Floats, weight: float) -> Ints:
    """[C] places of the earlier order, the best sum of standardised scores first; equal sums keep the earlier order.

    >>> fused_places([3.0, 2.0, 1.0], [0.0, 0.0, 9.0], 0.0).tolist()
    [0, 1, 2]
    >>> fused_places([3.0, 2.0, 1.0], [0.0, 0.0, 9.0], 5.0).tolist()
    [2, 0, 1]

    Args:
        earlier_C: scores in whose order the candidates stand.
        rerank_C: the reranker's, of the same candidates.
        weight: of the reranker's; 0 = the earlier order.
    """
    if weight == 0:
        return np.arange(len(earlier_C))
    return np.argsort(-(standardised(earlier_C) + weight * standardised(rerank_C)), kind="stable")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedList:
    """A list whose right item is known."""

    earlier_C: Sequence[float] | Floats
    rerank_C: Sequence[float] | Floats
    target: int
    """Place of the right item in the earlier order, from 0; -1 where the list lacks it."""

    @classmethod
    def of(cls, result: RerankResult, earlier: Sequence[float], target_id: Any) -> JudgedList:
        """From a reranker's result and the scores before it."""
        places = [at for at, item_id in enumerate(result.candidates) if item_id == target_id]
        return cls(earlier_C=earlier, rerank_C=rerank_scores(result), target=places[0] if places else -1)

    def gain(self, weight: float) -> float:
        """NDCG@10 of the fused order."""
        if self.target < 0:
            return 0.0
        rank = int(np.flatnonzero(fused_places(self.earlier_C, self.rerank_C, weight) == self.target)[0]) + 1
        return float(1.0 / np.log2(rank + 1)) if rank <= NUM_PLACES else 0.0


@dataclass(frozen=True, slots=True)
class ChosenWeight:
    """A weight, and what it did on the lists it was chosen on."""

    weight: float
    """0 = the reranker is not adopted."""
    ndcg: float
    before: float
    """The same of the earlier order."""
    num_lists: int


def choose_weight(lists: Sequence[JudgedList], weights: Sequence[float] = WEIGHTS) -> ChosenWeight:
    """The weight with the largest mean NDCG@10, the smaller of equal ones.

    It is 0 unless the gain, that of each half of the lists under the weight that the other half chooses, exceeds two
    standard errors.

    Args:
        lists: of validation.
        weights: to choose among; 0 is always one of them.
    """
    tried_W = np.array(sorted({0.0, *weights}))
    if not lists:
        return ChosenWeight(0.0, 0.0, 0.0, 0)
    gain_QW = np.array([[one.gain(float(weight)) for weight in tried_W] for one in lists])
    before_Q = gain_QW[:, 0]
    best = int(gain_QW.mean(0).argmax())
    if best:
        first_Q = np.arange(len(lists)) % 2 == 0
        if first_Q.all():
            best = 0
        else:
            # Each half of the lists judges what the other one chose.
            by_second, by_first = (int(gain_QW[half].mean(0).argmax()) for half in (~first_Q, first_Q))
            more_Q = np.where(first_Q, gain_QW[:, by_second], gain_QW[:, by_first]) - before_Q
            if more_Q.mean() <= STANDARD_ERRORS * more_Q.std(ddof=1) / len(more_Q) ** 0.5:
                best = 0
    return ChosenWeight(float(tried_W[best]), float(gain_QW[:, best].mean()), float(before_Q.mean()), len(lists))
