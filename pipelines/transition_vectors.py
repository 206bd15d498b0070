"""Item vectors from what follows what, without training.

Suffixes: I = items, K = dimensions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.index.relations import GAMMA
from recsys.pipelines.item_graphs import training_transitions

__all__ = ["transition_matrix_of", "transition_vectors"]

_MOST_NEIGHBOURS = 256
"""Per item, the likeliest ones: as many as an item graph keeps."""
_SMALLEST = 1e-5
"""Of the largest singular value: directions below it hold rounding errors."""


def transition_matrix_of(dataset: Dataset) -> scipy.sparse.csr_matrix:
    """[I, I] float32 (F + Fᵀ) / 2 with F = log(1 + 100 · P) of the positive events that may train; rows of F have 256
    entries at most."""
    parts = [scipy.sparse.csr_matrix((0, dataset.num_items), dtype=np.float32)]
    for _, rows in training_transitions(dataset).blocks():
        kept = rows.astype(np.float32)
        count_B = np.diff(kept.indptr)
        if len(count_B) and count_B.max() > _MOST_NEIGHBOURS:
            row_T = np.repeat(np.arange(len(count_B)), count_B)
            order_T = np.lexsort((kept.indices, -kept.data, row_T))
            place_T = np.arange(len(order_T)) - kept.indptr[row_T]
            kept.data[order_T[place_T >= _MOST_NEIGHBOURS]] = 0.0
            kept.eliminate_zeros()
        kept.data = np.log1p(np.float32(GAMMA) * kept.data)
        parts.append(kept)
    weights_II = scipy.sparse.vstack(parts, format="csr", dtype=np.float32)
    return ((weights_II + weights_II.T) * np.float32(0.5)).tocsr()


def transition_vectors(dataset: Dataset, *, dim: int = 64, seed: int = 0) -> NDArray[np.float32] | None:
    """Items that are followed by the same items lie near each other.

    The factors U·√S of a truncated SVD (Halko et al., arXiv 0909.4061) of log(1 + 100 · P), made symmetric, where P are
    the transition probabilities of the item graph. The held-out next item costs fewer bits under residual k-means codes
    of these and the content than without symmetry (Amazon Toys 12.39 and 12.48) or with rows of length 1 (12.44).

    Args:
        dataset: whose training events count; no others are read.
        dim: dimensions; fewer where the transitions have fewer.
        seed: of the randomised SVD. Equal seeds give equal bytes, whatever the number of threads.

    Returns:
        [I, K] float32, a row of zeros for an item without transitions. None where nothing follows anything.
    """
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

    matrix_II = transition_matrix_of(dataset)
    if matrix_II.nnz == 0:
        return None
    # One thread: sums in another order would give other bytes.
    with threadpool_limits(limits=1):
        left_IK, size_K, _ = randomized_svd(matrix_II, min(dim, dataset.num_items), n_iter=4, random_state=seed)
    kept_K = size_K > _SMALLEST * size_K[0]
    vectors_IK: NDArray[np.float32] = (left_IK[:, kept_K] * np.sqrt(size_K[kept_K])).astype(np.float32)
    vectors_IK[np.diff(matrix_II.indptr) == 0] = 0.0
    return np.ascontiguousarray(vectors_IK)
