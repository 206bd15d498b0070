"""Sums over what a key has before a time.

Suffixes: N = rows, B = rows asked for, X = columns (of counts: *yes* of every action, then *recorded*), A = actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EventCounts", "SumsBefore", "action_counts", "mask_bits"]

Ints = NDArray[np.int64]


def mask_bits(mask_N: Ints, num_actions: int) -> NDArray[np.bool_]:
    """[N, A] bits of action masks."""
    return (mask_N[:, None] >> np.arange(num_actions) & 1).astype(bool)


def action_counts(yes_N: Ints, known_N: Ints, num_actions: int) -> NDArray[np.bool_]:
    """[N, X] what every event adds to the counts of an action: that it happened, and that it was recorded."""
    return np.concatenate([mask_bits(yes_N, num_actions), mask_bits(known_N, num_actions)], axis=1)


class SumsBefore:
    """Sums over the rows of a key before a time, by two searches in the rows sorted by (key, time).

    Args:
        key_N: what the rows are summed by, not negative. time_N: when they happened.
        value_NX: what is summed; booleans are counted.
        distinct: the distinct times, sorted, where the caller has them.
    """

    def __init__(self, key_N: Ints, time_N: Ints, value_NX: NDArray[Any], distinct: Ints | None = None) -> None:
        # Times become ranks, so that (key, time) fits one integer whatever the unit of time.
        self._distinct = np.unique(time_N) if distinct is None else distinct
        self._ranks = len(self._distinct) + 1
        code_N = key_N * self._ranks + np.searchsorted(self._distinct, time_N)
        order_N = np.argsort(code_N, kind="stable")
        self._code_N = code_N[order_N]
        kind = np.int32 if value_NX.dtype == np.bool_ else value_NX.dtype
        self._total_NX: NDArray[Any] = np.zeros((len(key_N) + 1, value_NX.shape[1]), dtype=kind)
        np.cumsum(value_NX[order_N], axis=0, dtype=kind, out=self._total_NX[1:])

    def before(self, key_B: Ints, time_B: Ints) -> NDArray[Any]:
        """[B, X] over the rows of each key strictly before each time; zero for a negative key."""
        low_B = np.searchsorted(self._code_N, key_B * self._ranks)
        high_B = np.searchsorted(self._code_N, key_B * self._ranks + np.searchsorted(self._distinct, time_B))
        return self._total_NX[high_B] - self._total_NX[low_B]


class EventCounts(SumsBefore):
    """Counts over the events of a key before a time.

    Args:
        key_N: what the events are counted by, not negative. time_N: when they happened.
        yes_N, known_N: action masks.
        distinct: the distinct times, sorted, where the caller has them.
    """

    def __init__(
        self, key_N: Ints, time_N: Ints, yes_N: Ints, known_N: Ints, num_actions: int, distinct: Ints | None = None
    ) -> None:
        super().__init__(key_N, time_N, action_counts(yes_N, known_N, num_actions), distinct)
