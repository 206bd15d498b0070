"""What follows what: transition probabilities between items.

Suffixes: N = events, P = positive events, U = users, I = items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

__all__ = ["transition_matrix"]


def transition_matrix(
    offsets_U1: NDArray[np.int64],
    item_N: NDArray[np.int64],
    positive_N: NDArray[np.bool_],
    *,
    num_items: int,
    steps: Sequence[float] = (1.0, 0.6, 0.36),
    reverse: float = 0.7,
) -> scipy.sparse.csr_matrix:
    """P(i | h) of an item after another in somebody's positive events.

    An edge h -> i counts ``steps[s - 1]`` for every time i is the s-th positive event after h, and ``reverse`` times
    what i -> h counts. Steps are counted over positive events; an item never follows itself.

    Args:
        offsets_U1: events of user u are rows ``offsets_U1[u]:offsets_U1[u + 1]``, oldest first.
        item_N: internal item ids; events of negative ids are left out as if they had not been.
        positive_N: which events are positive.
        num_items: rows and columns.
        steps: weight per step ahead.
        reverse: weight of the reversed edge.

    Returns:
        [I, I] float64 CSR with sorted columns; rows sum to 1, or are empty.
    """
    num_events = int(offsets_U1[-1]) if len(offsets_U1) else 0
    if not len(item_N) == len(positive_N) == num_events:
        raise ValueError(
            f"offsets end at {num_events}, but there are {len(item_N)} items and {len(positive_N)} flags; "
            "pass the packed events of one log"
        )
    if len(item_N) and int(item_N.max()) >= num_items:
        raise ValueError(f"item {int(item_N.max())} is outside a catalogue of {num_items}; pass internal ids")
    keep_N = positive_N & (item_N >= 0)
    user_P = np.repeat(np.arange(len(offsets_U1) - 1), np.diff(offsets_U1))[keep_N]
    item_P = item_N[keep_N]
    shape = (num_items, num_items)
    edges = scipy.sparse.csr_matrix(shape, dtype=np.float64)
    for step, weight in enumerate(steps, start=1):
        source, target = item_P[:-step], item_P[step:]
        counts = (user_P[:-step] == user_P[step:]) & (source != target)
        source, target = source[counts], target[counts]
        edges = edges + scipy.sparse.csr_matrix((np.full(len(source), weight), (source, target)), shape=shape)
    edges = (edges + reverse * edges.T).tocsr()
    edges.eliminate_zeros()
    edges.sort_indices()
    total_I = np.asarray(edges.sum(axis=1)).ravel()
    edges.data /= np.repeat(total_I, np.diff(edges.indptr))
    return edges
