"""Where short random walks over the transitions end: two steps, and personalised PageRank.

Suffixes: I = items, B = items of a block, T = edges.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

__all__ = ["PAGERANK", "TWO_STEP", "WALKS", "walk_blocks"]

TWO_STEP = "two_step"
PAGERANK = "pagerank"
WALKS = (TWO_STEP, PAGERANK)

RESTART = 0.3
"""Probability that a walk of ``pagerank`` starts anew before a step."""
_WALK_STEPS = 4
"""Steps of a walk of ``pagerank`` at most; the 24 % of walks that get further are left out."""
_LEAST = 1e-3
"""A walk does not go on from, nor count, an item that it stands on after so many steps with a smaller probability."""
_EDGES_AT_ONCE = 2**22
"""Bound of the edges walked at once; one costs some 30 bytes meanwhile."""


def walk_blocks(
    name: str, probability: scipy.sparse.csr_matrix, *, restart: float = RESTART
) -> Iterator[tuple[NDArray[np.int64], scipy.sparse.csr_matrix]]:
    """All items in rising order, block by block, and where walks from them end.

    ``two_step`` is P². ``pagerank`` is Σ_t restart · (1 − restart)^t · P^t over one to four steps, by power iteration
    from all items of a block at once, where items below a probability of 1/1000 are dropped after every step: the
    sparse vectors that PowerWalk (arXiv 1608.06054) keeps of every node. Being sums over paths, both know neighbours
    that never stood near an item.

    Args:
        name: ``two_step`` or ``pagerank``.
        probability: [I, I] float32 P, at most some hundred entries a row; may lie in mapped files.
        restart: above 0 and at most 1.

    Yields:
        [B] items and [B, I] CSR with sorted columns, start included.
    """
    if name not in WALKS:
        raise ValueError(f"there is no walk {name!r}; choose one of {', '.join(WALKS)}")
    if not 0 < restart <= 1:
        raise ValueError(f"restart must be above 0 and at most 1, got {restart}")
    num_items = probability.shape[0]
    widest = int(np.diff(probability.indptr).max(initial=1))
    rows = min(2**15, max(1, _EDGES_AT_ONCE // (widest * min(widest, int(1 / _LEAST)))))
    for low in range(0, num_items, rows):
        item_B = np.arange(low, min(low + rows, num_items))
        step = probability[item_B]
        if name == TWO_STEP:
            yield item_B, _sorted(step @ probability)
            continue
        total = step * (restart * (1 - restart))
        for power in range(2, _WALK_STEPS + 1):
            step = _pruned(step @ probability)
            total = total + step * np.float32(restart * (1 - restart) ** power)
        yield item_B, _sorted(total)


def _sorted(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    matrix = matrix.tocsr()
    matrix.sort_indices()
    return matrix


def _pruned(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    keep_T = matrix.data >= _LEAST
    kept_T1 = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(keep_T)])
    return scipy.sparse.csr_matrix(
        (matrix.data[keep_T], matrix.indices[keep_T], kept_T1[matrix.indptr]), shape=matrix.shape
    )
