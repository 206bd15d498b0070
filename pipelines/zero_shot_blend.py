"""What a model learned on other catalogues, added to the nearness of texts that holds on any.

Suffixes: Q = requests, I = items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.events import Requests
from recsys.pipelines.baselines.selection import validation_ndcg
from recsys.pipelines.scorer import Scorer

__all__ = ["Blend", "Kept"]

Floats = NDArray[np.float32]

_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
_MOST_REQUESTS = 4000
_AT_ONCE = 512


class Kept:
    """A scorer that is asked twice for the same requests in a row, and works once."""

    def __init__(self, scorer: Scorer) -> None:
        self.name = scorer.name
        self._scorer = scorer
        self._last: tuple[Requests, Floats] | None = None

    def score(self, requests: Requests) -> Floats:
        """[Q, I]; a copy each time."""
        if self._last is None or self._last[0] is not requests:
            self._last = requests, self._scorer.score(requests)
        return self._last[1].copy()


class Blend:
    """Scores of the second + weight · scores of the first, each in units of its own spread over the catalogue.

    Units of the spread, since how far the scores of a model lie apart changes with the catalogue, and the weight has to
    hold on one that nobody saw.

    Args:
        learned: the model.
        nearest: neighbours by text.
        weight: of the model.
    """

    def __init__(self, learned: Scorer, nearest: Scorer, weight: float) -> None:
        self.name = f"{learned.name} + {nearest.name}"
        self.weight = weight
        self._parts = (learned, nearest)

    def score(self, requests: Requests) -> Floats:
        """[Q, I]."""
        learned_QI, nearest_QI = (_unit(part.score(requests)) for part in self._parts)
        return nearest_QI + np.float32(self.weight) * learned_QI

    @classmethod
    def fit(cls, learned: Scorer, nearest: Scorer, data: Dataset) -> float:
        """The weight that is best on at most 4,000 validation targets of a catalogue; of equal ones the smallest."""
        requests = data.requests("validation")
        picked = np.unique(np.linspace(0, len(requests) - 1, min(len(requests), _MOST_REQUESTS)).astype(np.int64))
        requests = requests.rows(picked)
        gain = np.zeros(len(_WEIGHTS))
        for low in range(0, len(requests), _AT_ONCE):
            part = requests.rows(slice(low, low + _AT_ONCE))
            learned_QI, nearest_QI = _unit(learned.score(part)), _unit(nearest.score(part))
            gain += [len(part) * _ndcg(data, part, learned_QI, nearest_QI, weight) for weight in _WEIGHTS]
        return _WEIGHTS[int(gain.argmax())]


def _ndcg(data: Dataset, part: Requests, learned_QI: Floats, nearest_QI: Floats, weight: float) -> float:
    return validation_ndcg(data, lambda _: nearest_QI + np.float32(weight) * learned_QI, part)


def _unit(score_QI: Floats) -> Floats:
    """Of mean 0 and deviation 1 over the items of a request; 0 where all are alike."""
    centred_QI = score_QI - score_QI.mean(1, keepdims=True)
    unit_QI: Floats = centred_QI / np.maximum(centred_QI.std(1, keepdims=True), np.float32(1e-12))
    return unit_QI
