"""The item graphs of a prepared dataset.

Suffixes: N = events, U = users, I = items.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.index.item_graph import TRANSITION, ItemGraph
from recsys.index.memory_terms import MemoryWeights
from recsys.index.transitions import TransitionLog, touched_items
from recsys.index.walks import WALKS

__all__ = ["chosen_relations", "item_graphs", "training_graph", "training_transitions", "weighted_relations"]

_DEFAULT = "default"
_MAPPED_ITEMS = 200_000
"""Graphs of more items lie in unnamed files of the temporary folder instead of in memory."""


def chosen_relations(dataset: Dataset, asked: str | None) -> tuple[str, ...]:
    """Relations by name, in the order of the graph.

    Args:
        dataset: which may have transitions, walks over them, the sparse text and several kinds of item vectors.
        asked: names separated by commas; ``default`` stands for the transitions and every text relation of the dataset,
            and so does None. Walks bring the transitions with them.

    Raises:
        InputError: the dataset has no such relation.
    """
    return _relations(dataset, [word.strip() for word in (asked or _DEFAULT).split(",") if word.strip()])


def _relations(dataset: Dataset, words: Sequence[str]) -> tuple[str, ...]:
    texts = _text_vectors(dataset)
    every = (TRANSITION, *WALKS, *texts)
    chosen: set[str] = set()
    for word in words:
        if word not in (*every, _DEFAULT):
            raise InputError(
                f"{dataset.path} has no relation {word!r} between items; "
                f"choose some of {', '.join(every)}, or {_DEFAULT}"
            )
        chosen |= {TRANSITION, *texts} if word == _DEFAULT else {TRANSITION, word} if word in WALKS else {word}
    return tuple(name for name in every if name in chosen)


def weighted_relations(weights: MemoryWeights | None, others: Sequence[str] = ()) -> tuple[str, ...] | None:
    """The relations that a model's item graph must hold: those that its weights name, in any order.

    Args:
        weights: of its memory terms; None or without relations = the graph is that of :func:`training_graph` unasked.
        others: relations that something else of the model reads.
    """
    if weights is None or not weights.relations:
        return None
    return tuple(dict.fromkeys((*weights.relations, *others)))


def training_graph(dataset: Dataset, relations: Sequence[str] | None = None) -> ItemGraph:
    """The graph of training events.

    Args:
        dataset: whose transitions of training events and item vectors make it.
        relations: some of ``transition``, ``two_step`` and ``pagerank`` (walks over the transitions), ``text`` (sparse)
            and the kinds of item vectors; None = all but the walks.

    Raises:
        InputError: the dataset has no such relation.
    """
    chosen = _relations(dataset, (_DEFAULT,) if relations is None else relations)
    return ItemGraph.build(
        dataset.num_items,
        transitions=_transitions(dataset, training_only=True) if TRANSITION in chosen else None,
        texts={name: vectors for name, vectors in _text_vectors(dataset).items() if name in chosen},
        walks=[name for name in chosen if name in WALKS],
        scratch=_scratch(dataset),
    )


def item_graphs(dataset: Dataset, relations: Sequence[str] | None = None) -> tuple[ItemGraph, ItemGraph]:
    """The graph of training events, and the same with transitions of all known events."""
    train = training_graph(dataset, relations)
    if TRANSITION not in train.relations:
        return train, train
    events = dataset.events
    touched_B = touched_items(
        events.offsets, events.item, dataset.is_positive(), dataset.train_end, num_items=dataset.num_items
    )
    now = train.append(
        dataset.num_items,
        transitions=_transitions(dataset, training_only=False),
        touched=touched_B,
        scratch=_scratch(dataset),
    )
    return train, now


def training_transitions(dataset: Dataset) -> TransitionLog:
    """Positive events that may train, laid out for counting transitions."""
    return _transitions(dataset, training_only=True)


def _text_vectors(dataset: Dataset) -> dict[str, Any]:
    texts: dict[str, Any] = {} if dataset.sparse_text is None else {"text": dataset.sparse_text}
    return texts | dataset.relation_vectors


def _transitions(dataset: Dataset, *, training_only: bool) -> TransitionLog:
    events, positive_N = dataset.events, dataset.is_positive()
    offsets_U1, item_N = events.offsets, events.item
    if training_only:
        place_N = np.arange(len(events)) - np.repeat(offsets_U1[:-1], np.diff(offsets_U1))
        keep_N: NDArray[np.bool_] = place_N < np.repeat(dataset.train_end, np.diff(offsets_U1))
        offsets_U1 = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(dataset.train_end)])
        item_N, positive_N = item_N[keep_N], positive_N[keep_N]
    return TransitionLog.of(offsets_U1, item_N, positive_N, num_items=dataset.num_items)


def _scratch(dataset: Dataset) -> Path | None:
    return Path(tempfile.gettempdir()) if dataset.num_items > _MAPPED_ITEMS else None
