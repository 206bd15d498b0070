"""Who is asked what: the targets of validation and test, what may train, and which items are held out.

Suffixes: N = events, U = users, I = items, P = positives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["Split", "cold_targets", "held_out_items", "leave_one_out", "split_by_time"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Split:
    """Places among each user's events; -1 = none."""

    train_end_U: Ints
    """The first so many events may train."""
    valid_at_U: Ints
    test_at_U: Ints


def leave_one_out(offsets_U1: Ints, positive_N: Bools) -> Split:
    """Test target = last positive with an event before it, validation target = the one before, likewise.

    Everything before the validation target trains; without one, everything before the test target; without either,
    everything.
    """
    start_U, end_U = offsets_U1[:-1], offsets_U1[1:]
    first_N = np.zeros(len(positive_N), dtype=np.bool_)
    first_N[start_U[start_U < end_U]] = True
    row_P = np.flatnonzero(positive_N & ~first_N)
    low_U = np.searchsorted(row_P, start_U)
    high_U = np.searchsorted(row_P, end_U)
    padded_P = np.concatenate([[0, 0], row_P])  # two places to read from where a user has no positive
    test_at_U = np.where(high_U - low_U >= 1, padded_P[high_U + 1] - start_U, -1)
    valid_at_U = np.where(high_U - low_U >= 2, padded_P[high_U] - start_U, -1)
    train_end_U = np.where(valid_at_U >= 0, valid_at_U, np.where(test_at_U >= 0, test_at_U, end_U - start_U))
    return Split(train_end_U, valid_at_U, test_at_U)


def split_by_time(offsets_U1: Ints, positive_N: Bools, timestamp_N: Ints, *, valid_from: int, test_from: int) -> Split:
    """Train < valid_from <= validation < test_from <= test; the target of a period is its first positive."""
    start_U = offsets_U1[:-1]

    def before(time: int) -> Ints:
        earlier_N1 = np.append(0, np.cumsum(timestamp_N < time))
        return earlier_N1[offsets_U1[1:]] - earlier_N1[start_U]

    def first(inside_N: Bools) -> Ints:
        row_P = np.append(np.flatnonzero(inside_N & positive_N), len(positive_N))
        row_U = row_P[np.searchsorted(row_P, start_U)]
        return np.where(row_U < offsets_U1[1:], row_U - start_U, -1)

    inside_N = (timestamp_N >= valid_from) & (timestamp_N < test_from)
    return Split(before(valid_from), first(inside_N), first(timestamp_N >= test_from))


def held_out_items(item_ids: pl.Series, share: float) -> Bools:
    """[I] whether an item is held out: the SHA-256 of its id as text, read as a number in [0, 1), is below ``share``.

    The same items on every machine and in any order, and a larger share holds out more of them, never others.
    """
    texts = item_ids.cast(pl.String).to_list()
    first = (hashlib.sha256(text.encode("utf-8")).digest()[:8] for text in texts)
    return np.fromiter((int.from_bytes(eight, "big") < share * 2.0**64 for eight in first), np.bool_, len(texts))


def cold_targets(
    user_N: Ints, positive_N: Bools, held_N: Bools, timestamp_N: Ints, *, test_from: int | None
) -> tuple[Ints, Ints]:
    """Each user's last positive event with an item that is held out.

    Args:
        user_N: users of all events, ascending. held_N: whether the event's item is held out.
        test_from: of a split by time, whose targets stand in the test period: what is earlier was known in training.
            None = leave-one-out, whose targets need an event before them.

    Returns:
        rows of the targets, and how many events that are not held out the user has before each.
    """
    kept_N1 = np.append(0, np.cumsum(~held_N))
    start_N = np.searchsorted(user_N, user_N)
    before_N = kept_N1[:-1] - kept_N1[start_N]
    asked_N = before_N > 0 if test_from is None else timestamp_N >= test_from
    row_P = np.flatnonzero(held_N & positive_N & asked_N)
    last_P = np.append(user_N[row_P][1:] != user_N[row_P][:-1], True)[: len(row_P)]
    return row_P[last_P], before_N[row_P[last_P]]
