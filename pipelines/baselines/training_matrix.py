"""What the classical baselines read: who liked what in training, and histories as weighted rows.

Suffixes: N = events, U = users, I = items, Q = requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

if TYPE_CHECKING:
    from recsys.dataset import Dataset
    from recsys.events import Requests

__all__ = ["event_places", "event_users", "history_matrix", "is_training", "training_matrix"]

Ints = NDArray[np.int64]

MAX_TRAINING_POSITIVES = 1000
"""Newest training positives of a user that enter the matrix: pairs grow with the square of a history."""


def event_users(dataset: Dataset) -> Ints:
    """[N] user of every event."""
    return np.repeat(np.arange(dataset.num_users, dtype=np.int64), np.diff(dataset.events.offsets))


def event_places(dataset: Dataset) -> Ints:
    """[N] place of every event in its user's history."""
    offsets = dataset.events.offsets
    return np.arange(len(dataset.events), dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))


def is_training(dataset: Dataset) -> NDArray[np.bool_]:
    """[N] whether an event may train."""
    return event_places(dataset) < np.repeat(dataset.train_end, np.diff(dataset.events.offsets))


def training_matrix(dataset: Dataset) -> scipy.sparse.csr_matrix:
    """[U, I] float32: 1 where a training event of the user with the item is a positive."""
    row_N = np.flatnonzero(is_training(dataset) & dataset.is_positive())
    user_N = event_users(dataset)[row_N]
    row_N, user_N = (values[_from_end(user_N) < MAX_TRAINING_POSITIVES] for values in (row_N, user_N))
    shape = (dataset.num_users, dataset.num_items)
    ones_N = np.ones(len(row_N), dtype=np.float32)
    matrix = scipy.sparse.csr_matrix((ones_N, (user_N, dataset.events.item[row_N])), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def history_matrix(dataset: Dataset, requests: Requests, decay: float) -> scipy.sparse.csr_matrix:
    """[Q, I] float32: the positives of each history, the newest with weight 1, the k-th before it with decay ** k."""
    start_Q = dataset.events.offsets[requests.user]
    query_N = np.repeat(np.arange(len(requests), dtype=np.int64), requests.end)
    first_Q = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(requests.end)])[:-1]
    row_N = np.arange(len(query_N), dtype=np.int64) - first_Q[query_N] + start_Q[query_N]
    positive_N = (dataset.events.yes[row_N] & dataset.manifest.positive_mask) != 0
    row_N, query_N = row_N[positive_N], query_N[positive_N]
    weight_N = np.power(np.float32(decay), _from_end(query_N).astype(np.float32))
    keep_N = weight_N > 1e-6
    shape = (len(requests), dataset.num_items)
    item_N = dataset.events.item[row_N]
    matrix = scipy.sparse.csr_matrix((weight_N[keep_N], (query_N[keep_N], item_N[keep_N])), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _from_end(group_N: Ints) -> Ints:
    """[N] how many rows of the same group follow each row, for groups in a row."""
    last_N = np.searchsorted(group_N, group_N, side="right") - 1
    return last_N - np.arange(len(group_N), dtype=np.int64)
