"""Item-kNN: cosine between the users of items, with shrinkage, over histories weighted by recency.

Suffixes: I = items, Q = requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from recsys.pipelines.baselines.selection import validation_ndcg, validation_sample
from recsys.pipelines.baselines.training_matrix import history_matrix, training_matrix

if TYPE_CHECKING:
    from recsys.dataset import Dataset
    from recsys.events import Requests

__all__ = ["MAX_FULL_ITEMS", "MAX_NEIGHBOURS", "LinearScorer", "best_decay", "fit_item_knn"]

SHRINKS = (0.0, 5.0, 10.0, 20.0, 50.0)
DECAYS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
MAX_FULL_ITEMS = 20_000
"""Catalogues above this keep only the nearest :data:`MAX_NEIGHBOURS` of every item."""
MAX_NEIGHBOURS = 500
_BLOCK = 2048


class LinearScorer:
    """Scores an item by the weighted sum of its weights to the items of the history."""

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        weight_II: scipy.sparse.csr_matrix | NDArray[np.float32],
        settings: dict[str, Any],
    ) -> None:
        self.name = name
        self.settings = settings
        self._dataset = dataset
        self._weight_II = weight_II

    def score(self, requests: Requests) -> NDArray[np.float32]:
        """[Q, I]; 0 for items that no item of the history points to."""
        score_QI = history_matrix(self._dataset, requests, self.settings["decay"]) @ self._weight_II
        if scipy.sparse.issparse(score_QI):
            score_QI = score_QI.toarray()
        return np.asarray(score_QI, dtype=np.float32)


def fit_item_knn(dataset: Dataset) -> LinearScorer:
    """Cosine over positive training events; shrinkage, then the decay of the history chosen on validation."""
    matrix_UI = training_matrix(dataset)
    count_I = np.asarray(matrix_UI.sum(0), dtype=np.float32).ravel()
    pairs_II = _co_occurrences(matrix_UI, count_I)
    pairs_of = np.repeat(np.arange(dataset.num_items), np.diff(pairs_II.indptr))
    norm = np.sqrt(count_I[pairs_of] * count_I[pairs_II.indices])
    requests = validation_sample(dataset)

    def fitted(shrink: float, decay: float) -> LinearScorer:
        cosine_II = scipy.sparse.csr_matrix(
            (pairs_II.data / (norm + np.float32(shrink)), pairs_II.indices, pairs_II.indptr), shape=pairs_II.shape
        )
        dense = cosine_II.nnz > 0.1 * dataset.num_items**2  # a dense product is faster from about here on
        return LinearScorer(
            "item_knn", dataset, cosine_II.toarray() if dense else cosine_II, {"shrink": shrink, "decay": decay}
        )

    best, best_ndcg = fitted(SHRINKS[0], DECAYS[0]), -1.0
    for shrink in SHRINKS:
        scorer = fitted(shrink, 0.8)
        ndcg = validation_ndcg(dataset, scorer.score, requests)
        if ndcg > best_ndcg:
            best, best_ndcg = scorer, ndcg
    return best_decay(dataset, best, requests)


def best_decay(dataset: Dataset, scorer: LinearScorer, requests: Requests) -> LinearScorer:
    """The same weights with the decay of :data:`DECAYS` that is best on ``requests``."""
    tried = []
    for place, decay in enumerate(DECAYS):
        other = LinearScorer(scorer.name, dataset, scorer._weight_II, scorer.settings | {"decay": decay})
        tried.append((validation_ndcg(dataset, other.score, requests), -place, other))
    return max(tried, key=lambda entry: entry[:2])[2]


def _co_occurrences(matrix_UI: scipy.sparse.csr_matrix, count_I: NDArray[np.float32]) -> scipy.sparse.csr_matrix:
    """[I, I] users that two different items have in common."""
    by_item_IU = matrix_UI.T.tocsr()
    num_items = by_item_IU.shape[0]
    blocks = []
    for start in range(0, num_items, _BLOCK):
        block = (by_item_IU[start : start + _BLOCK] @ matrix_UI).tocoo()
        keep = block.row + start != block.col
        row, column, value = block.row[keep], block.col[keep], block.data[keep]
        if num_items > MAX_FULL_ITEMS:
            cosine = value / np.sqrt(count_I[row + start] * count_I[column])
            order = np.lexsort((column, -cosine, row))
            rank = np.arange(len(order)) - np.searchsorted(row[order], row[order])
            order = order[rank < MAX_NEIGHBOURS]
            row, column, value = row[order], column[order], value[order]
        blocks.append(scipy.sparse.csr_matrix((value, (row, column)), shape=block.shape, dtype=np.float32))
    return scipy.sparse.vstack(blocks, format="csr")
