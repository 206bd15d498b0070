"""EASE: a linear item-to-item model in closed form (Steck, arXiv 1905.03375).

Suffixes: I = items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from recsys.errors import InputError
from recsys.pipelines.baselines.item_knn import LinearScorer, best_decay
from recsys.pipelines.baselines.selection import validation_ndcg, validation_sample
from recsys.pipelines.baselines.training_matrix import training_matrix

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["MAX_ITEMS", "fit_ease"]

MAX_ITEMS = 20_000
"""Larger catalogues need more than some 5 GiB and minutes for the inverse."""
LAMBDAS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
FEW_LAMBDAS = (30.0, 300.0)
"""Tried above 3,000 items, where one inverse takes seconds."""


def fit_ease(dataset: Dataset) -> LinearScorer:
    """The L2 weight, then the decay of the history chosen on validation.

    Raises:
        InputError: the catalogue has more than :data:`MAX_ITEMS` items.
    """
    if dataset.num_items > MAX_ITEMS:
        raise InputError(
            f"the baseline ease inverts a matrix of all items, at most {MAX_ITEMS}, and {dataset.path} has "
            f"{dataset.num_items}; leave it out of --baselines"
        )
    matrix_UI = training_matrix(dataset)
    requests = validation_sample(dataset)
    best: LinearScorer | None = None
    best_ndcg = -1.0
    for l2 in LAMBDAS if dataset.num_items <= 3000 else FEW_LAMBDAS:
        gram_II = (matrix_UI.T @ matrix_UI).toarray(order="F")
        scorer = LinearScorer("ease", dataset, ease_weights(gram_II, l2), {"lambda": l2, "decay": 0.8})
        ndcg = validation_ndcg(dataset, scorer.score, requests)
        if ndcg > best_ndcg:
            best, best_ndcg = scorer, ndcg
    assert best is not None
    return best_decay(dataset, best, requests)


def ease_weights(gram_II: NDArray[np.float32], l2: float) -> NDArray[np.float32]:
    """[I, I] weights: -P / diag(P) by columns with a zero diagonal, P the inverse of the Gram matrix plus ``l2``.

    ``gram_II`` is column-major float32 and is overwritten.
    """
    num_items = len(gram_II)
    diagonal = np.arange(num_items)
    gram_II[diagonal, diagonal] += np.float32(l2)
    factor_II, info = lapack.spotrf(gram_II, lower=0, overwrite_a=1, clean=1)
    if info == 0:
        inverse_II, info = lapack.spotri(factor_II, lower=0, overwrite_c=1)
    if info != 0:
        raise ArithmeticError(f"the Gram matrix with lambda {l2} cannot be inverted in float32 (LAPACK says {info})")
    inverse_II += np.triu(inverse_II, 1).T  # LAPACK fills the upper half
    weight_II = inverse_II / -inverse_II[diagonal, diagonal]
    weight_II[diagonal, diagonal] = 0.0
    return np.ascontiguousarray(weight_II, dtype=np.float32)
