"""What follows what: transition probabilities between items, for as many items at once as memory allows.

Suffixes: N = events, P = positive events, U = users, I = items, B = items asked for, X = (item, step) places,
T = edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

__all__ = ["TransitionLog", "touched_items", "transition_matrix"]

STEPS = (1.0, 0.6, 0.36)
"""Weight per step ahead."""
REVERSE = 0.7
_PAIRS_AT_ONCE = 2**22
"""Pairs counted at once; a pair costs some 60 bytes meanwhile."""
_ROWS_AT_ONCE = 2**16


@dataclass(frozen=True, slots=True)
class TransitionLog:
    """Positive events laid out so that the transitions of any items can be counted without looking at the others.

    An edge h -> i counts ``steps[s - 1]`` for every time i is the s-th positive event after h, and ``reverse`` times
    what i -> h counts. Steps are counted over positive events; an item never follows itself. P(i | h) is the share of
    h -> i in the edges of h. It takes 12 bytes an event and 8 an item.
    """

    num_items: int
    steps: tuple[float, ...]
    reverse: float
    item_P: NDArray[np.int32]
    """Items of positive events, user after user, oldest first."""
    user_P: NDArray[np.int32]
    place_P: NDArray[np.int32] | NDArray[np.int64]
    """Places in ``item_P``, item after item."""
    first_I1: NDArray[np.int64]
    """Places of item i are ``place_P[first_I1[i]:first_I1[i + 1]]``."""

    @classmethod
    def of(
        cls,
        offsets_U1: NDArray[np.int64],
        item_N: NDArray[np.int64],
        positive_N: NDArray[np.bool_],
        *,
        num_items: int,
        steps: Sequence[float] = STEPS,
        reverse: float = REVERSE,
    ) -> TransitionLog:
        """Lay out the events of a log.

        Args:
            offsets_U1: events of user u are rows ``offsets_U1[u]:offsets_U1[u + 1]``, oldest first.
            item_N: internal item ids; events of negative ids are left out as if they had not been.
            positive_N: which events are positive.
            num_items: of the catalogue.
            steps: weight per step ahead.
            reverse: weight of the reversed edge.
        """
        _check(offsets_U1, item_N, positive_N, num_items)
        keep_N = positive_N & (item_N >= 0)
        user_P = np.repeat(np.arange(len(offsets_U1) - 1, dtype=np.int32), np.diff(offsets_U1))[keep_N]
        item_P = item_N[keep_N].astype(np.int32)
        place_P: NDArray[np.int32] | NDArray[np.int64] = np.argsort(item_P, kind="stable")
        if len(item_P) < 2**31:
            place_P = place_P.astype(np.int32)
        first_I1 = np.zeros(num_items + 1, dtype=np.int64)
        np.cumsum(np.bincount(item_P, minlength=num_items), out=first_I1[1:])
        return cls(num_items, tuple(steps), reverse, item_P, user_P, place_P, first_I1)

    def rows(self, item_B: NDArray[np.int64]) -> scipy.sparse.csr_matrix:
        """[B, I] float64 P of some items, columns sorted; a row sums to 1, or is empty."""
        count_B = np.diff(self.first_I1)[item_B]
        row_X = np.repeat(np.arange(len(item_B)), count_B)
        shift_B = self.first_I1[item_B] - (np.cumsum(count_B) - count_B)
        place_X = self.place_P[np.arange(len(row_X)) + shift_B[row_X]].astype(np.int64)
        shape = (len(item_B), self.num_items)
        edges = scipy.sparse.csr_matrix(shape, dtype=np.float64)
        for step, weight in enumerate(self.steps, start=1):
            for other_X, share in ((place_X + step, weight), (place_X - step, weight * self.reverse)):
                inside_X = (other_X >= 0) & (other_X < len(self.item_P))
                place_T, other_T = place_X[inside_X], other_X[inside_X]
                counts_T = (self.user_P[place_T] == self.user_P[other_T]) & (
                    self.item_P[place_T] != self.item_P[other_T]
                )
                row_T, to_T = row_X[inside_X][counts_T], self.item_P[other_T[counts_T]]
                # Whole numbers are counted, then weighed, so that the block an item is in changes no sum.
                times = scipy.sparse.csr_matrix((np.ones(len(to_T), dtype=np.int32), (row_T, to_T)), shape=shape)
                edges = edges + times * share
        edges.eliminate_zeros()
        edges.sort_indices()
        total_B = np.asarray(edges.sum(axis=1)).ravel()
        edges.data /= np.repeat(total_B, np.diff(edges.indptr))
        return edges

    def blocks(
        self, item_B: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], scipy.sparse.csr_matrix]]:
        """Items and their rows, so many at once that their pairs fit into memory.

        Args:
            item_B: which items, in which order; None = all.
        """
        item_B = np.arange(self.num_items) if item_B is None else item_B
        pairs_B1 = np.concatenate([[0], np.cumsum(np.diff(self.first_I1)[item_B])]) * (2 * len(self.steps))
        low = 0
        while low < len(item_B):
            high = int(np.searchsorted(pairs_B1, pairs_B1[low] + _PAIRS_AT_ONCE, side="right")) - 1
            high = min(max(high, low + 1), low + _ROWS_AT_ONCE, len(item_B))
            yield item_B[low:high], self.rows(item_B[low:high])
            low = high


def transition_matrix(
    offsets_U1: NDArray[np.int64],
    item_N: NDArray[np.int64],
    positive_N: NDArray[np.bool_],
    *,
    num_items: int,
    steps: Sequence[float] = STEPS,
    reverse: float = REVERSE,
) -> scipy.sparse.csr_matrix:
    """P(i | h) of an item after another in somebody's positive events, all of it at once.

    Args:
        offsets_U1, item_N, positive_N, num_items, steps, reverse: as in :meth:`TransitionLog.of`.

    Returns:
        [I, I] float64 CSR with sorted columns; rows sum to 1, or are empty.
    """
    log = TransitionLog.of(offsets_U1, item_N, positive_N, num_items=num_items, steps=steps, reverse=reverse)
    empty = scipy.sparse.csr_matrix((0, num_items), dtype=np.float64)
    return scipy.sparse.vstack([empty, *(rows for _, rows in log.blocks())], format="csr")


def touched_items(
    offsets_U1: NDArray[np.int64],
    item_N: NDArray[np.int64],
    positive_N: NDArray[np.bool_],
    known_U: NDArray[np.int64],
    *,
    num_items: int,
    reach: int = len(STEPS),
) -> NDArray[np.int64]:
    """Items whose transitions differ from those of a log that ended earlier: those of new events and just before them.

    Args:
        offsets_U1, item_N, positive_N, num_items: the log as it is now; see :meth:`TransitionLog.of`.
        known_U: [U] events at the start of each user's row that were there before; 0 for a new user.
        reach: steps ahead that count.

    Returns:
        [B] int64, rising.
    """
    _check(offsets_U1, item_N, positive_N, num_items)
    length_U = np.diff(offsets_U1)
    if len(known_U) != len(length_U) or (known_U > length_U).any() or (known_U < 0).any():
        raise ValueError(f"known_U must hold 0 to the number of events of each of the {len(length_U)} users")
    keep_N = positive_N & (item_N >= 0)
    user_P = np.repeat(np.arange(len(length_U)), length_U)[keep_N]
    item_P = item_N[keep_N]
    new_P = (np.arange(len(item_N)) - np.repeat(offsets_U1[:-1] + known_U, length_U) >= 0)[keep_N]
    touched_P = new_P.copy()
    for step in range(1, reach + 1):
        touched_P[:-step] |= new_P[step:] & (user_P[:-step] == user_P[step:])
    return np.unique(item_P[touched_P]).astype(np.int64)


def _check(
    offsets_U1: NDArray[np.int64], item_N: NDArray[np.int64], positive_N: NDArray[np.bool_], num_items: int
) -> None:
    num_events = int(offsets_U1[-1]) if len(offsets_U1) else 0
    if not len(item_N) == len(positive_N) == num_events:
        raise ValueError(
            f"offsets end at {num_events}, but there are {len(item_N)} items and {len(positive_N)} flags; "
            "pass the packed events of one log"
        )
    if len(item_N) and int(item_N.max()) >= num_items:
        raise ValueError(f"item {int(item_N.max())} is outside a catalogue of {num_items}; pass internal ids")
