"""The item graphs of a prepared dataset.

Suffixes: N = events, U = users, I = items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.index.item_graph import ItemGraph
from recsys.index.transitions import transition_matrix

__all__ = ["item_graphs", "training_graph"]


def training_graph(dataset: Dataset) -> ItemGraph:
    """Transitions of training events, the sparse text as ``text``, and a relation for each kind of item vectors."""
    texts: dict[str, Any] = {}
    if dataset.sparse_text is not None:
        texts["text"] = dataset.sparse_text
    texts |= dataset.relation_vectors
    return ItemGraph.build(dataset.num_items, transitions=_transitions(dataset, training_only=True), texts=texts)


def item_graphs(dataset: Dataset) -> tuple[ItemGraph, ItemGraph]:
    """The graph of training events, and the same with transitions of all known events."""
    train = training_graph(dataset)
    return train, train.with_transitions(_transitions(dataset, training_only=False))


def _transitions(dataset: Dataset, *, training_only: bool) -> scipy.sparse.csr_matrix:
    events, positive_N = dataset.events, dataset.is_positive()
    offsets_U1, item_N = events.offsets, events.item
    if training_only:
        place_N = np.arange(len(events)) - np.repeat(offsets_U1[:-1], np.diff(offsets_U1))
        keep_N: NDArray[np.bool_] = place_N < np.repeat(dataset.train_end, np.diff(offsets_U1))
        offsets_U1 = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(dataset.train_end)])
        item_N, positive_N = item_N[keep_N], positive_N[keep_N]
    return transition_matrix(offsets_U1, item_N, positive_N, num_items=dataset.num_items)
