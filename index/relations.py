"""The relations of an item graph, built block by block, and grown by new items and events.

Suffixes: I = items, B = items of a block, M = neighbours, T = edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.index.edge_table import EdgeSpool, EdgeTable, best_edges, ranges
from recsys.index.text_neighbours import Neighbours, nearest_by_cosine
from recsys.index.transitions import TransitionLog
from recsys.index.walks import RESTART, walk_blocks

__all__ = ["GAMMA", "grown_texts", "grown_transitions", "text_edges", "transition_edges", "walk_edges"]

GAMMA = 100.0
"""f = log(1 + GAMMA · P) of transitions and walks."""
_ROWS_AT_ONCE = 2**14
"""Items whose edges are merged at once."""


def transition_edges(
    transitions: scipy.sparse.spmatrix | TransitionLog, most: int, scratch: Path | None = None
) -> EdgeTable:
    """The likeliest transitions of every item, f = log(1 + 100·P).

    Args:
        transitions: [I, I] probabilities, or the log to count them in, block by block.
        most: neighbours kept per item.
        scratch: folder for the edges; None = memory.
    """
    if isinstance(transitions, TransitionLog):
        return _probable(transitions.blocks(), most, scratch)
    matrix = scipy.sparse.csr_matrix(transitions)
    matrix.sort_indices()
    low_B = range(0, matrix.shape[0], _ROWS_AT_ONCE)
    blocks = (np.arange(low, min(low + _ROWS_AT_ONCE, matrix.shape[0])) for low in low_B)
    return _probable(((item_B, matrix[item_B]) for item_B in blocks), most, scratch)


def walk_edges(
    name: str, transitions: EdgeTable, most: int, scratch: Path | None = None, *, restart: float = RESTART
) -> EdgeTable:
    """Where walks over the kept transitions end, f = log(1 + 100·π); see :func:`recsys.index.walks.walk_blocks`."""
    probability_T = torch.expm1(transitions.value_T) / GAMMA
    columns = probability_T.numpy(), transitions.id_T.numpy(), transitions.indptr_I1.numpy()
    shape = (transitions.num_items, transitions.num_items)
    return _probable(walk_blocks(name, scipy.sparse.csr_matrix(columns, shape=shape), restart=restart), most, scratch)


def text_edges(vectors: Any, most: int, scratch: Path | None = None, *, method: str = "auto") -> EdgeTable:
    """The items with the largest positive cosines of every item; see :func:`nearest_by_cosine`."""
    return _spooled(nearest_by_cosine(vectors, most, method=method), 0, scratch)


def grown_transitions(
    before: EdgeTable, log: TransitionLog, touched_B: NDArray[np.int64], most: int, scratch: Path | None = None
) -> EdgeTable:
    """The table with some rows counted again, which is what building all of it would give.

    Args:
        before: transitions of fewer events, and items perhaps.
        log: all events as they are now.
        touched_B: items whose rows differ, rising; see :func:`recsys.index.transitions.touched_items`.
        most: neighbours kept per item.
        scratch: folder for the edges; None = memory.
    """
    again = _probable(log.blocks(touched_B), most, scratch)
    spool = EdgeSpool(scratch)
    for low in range(0, log.num_items, _ROWS_AT_ONCE):
        high = min(low + _ROWS_AT_ONCE, log.num_items)
        first, last = np.searchsorted(touched_B, [low, high])
        inside_B = torch.from_numpy(touched_B[first:last] - low)
        count_B, id_T, value_T = before.block(low, high)
        new_B, new_id_T, new_value_T = again.block(int(first), int(last))
        stays_B = torch.ones(high - low, dtype=torch.bool)
        stays_B[inside_B] = False
        row_T = torch.repeat_interleave(count_B)
        stays_T = stays_B[row_T]
        row_T = torch.cat([row_T[stays_T], torch.repeat_interleave(inside_B, new_B)])
        order_T = row_T.sort(stable=True).indices
        id_T, value_T = torch.cat([id_T[stays_T], new_id_T]), torch.cat([value_T[stays_T], new_value_T])
        spool.add(torch.bincount(row_T, minlength=high - low), id_T[order_T], value_T[order_T])
    return spool.table()


def grown_texts(
    before: EdgeTable, vectors: Any, most: int, scratch: Path | None = None, *, method: str = "auto"
) -> EdgeTable:
    """The table with more items: they get neighbours, and become neighbours of those that were there.

    Where neighbours are found exactly, this is what building all of it would give.

    Args:
        before: neighbours of the first items.
        vectors: [I, V] of all items, those of the first ones unchanged.
        most: neighbours kept per item.
        scratch: folder for the edges; None = memory.
        method: as in :func:`nearest_by_cosine`.
    """
    old, num_items = before.num_items, vectors.shape[0]
    if old == num_items:
        return before
    new = range(old, num_items)
    found = nearest_by_cosine(vectors, most, queries=range(old), among=new, method=method)
    closer = _spooled(found, 0, scratch)
    spool = EdgeSpool(scratch)
    for low in range(0, old, _ROWS_AT_ONCE):
        high = min(low + _ROWS_AT_ONCE, old)
        parts = [before.block(low, high), closer.block(low, high)]
        row_T = torch.cat([torch.repeat_interleave(count_B) for count_B, _, _ in parts]).numpy()
        # New ids are larger, so that equal cosines stay in the order of their ids.
        id_T, value_T = (torch.cat([part[at] for part in parts]).numpy() for at in (1, 2))
        spool.add(*best_edges(row_T, id_T, value_T, high - low, most))
    for block in _in_order(nearest_by_cosine(vectors, most, queries=new, method=method), old):
        spool.add(*block)
    return spool.table()


def _probable(
    blocks: Iterable[tuple[NDArray[np.int64], scipy.sparse.csr_matrix]], most: int, scratch: Path | None
) -> EdgeTable:
    spool = EdgeSpool(scratch)
    for item_B, rows in blocks:
        row_T = np.repeat(np.arange(len(item_B)), np.diff(rows.indptr))
        usable_T = (rows.indices != item_B[row_T]) & (rows.data > 0)
        value_T = np.log1p(GAMMA * rows.data[usable_T]).astype(np.float32)
        spool.add(*best_edges(row_T[usable_T], rows.indices[usable_T], value_T, len(item_B), most))
    return spool.table()


def _spooled(found: Iterable[Neighbours], first: int, scratch: Path | None) -> EdgeTable:
    spool = EdgeSpool(scratch)
    for block in _in_order(found, first):
        spool.add(*block)
    return spool.table()


def _in_order(found: Iterable[Neighbours], first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Edges of items ``first``, ``first + 1``, …, as soon as all of a run are there."""
    waiting: list[Neighbours] = []
    num_found, largest = first, first - 1
    for item_B, cosine_BM, id_BM in found:
        waiting.append((item_B, cosine_BM, id_BM))
        num_found += len(item_B)
        largest = max(largest, int(item_B.max(initial=-1)))
        if num_found == largest + 1:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[Neighbours]) -> tuple[Tensor, Tensor, Tensor]:
    item_B = torch.from_numpy(np.concatenate([item_B for item_B, _, _ in blocks]))
    count_B = torch.cat([(id_BM >= 0).sum(1) for _, _, id_BM in blocks])
    ids = torch.cat([id_BM[id_BM >= 0].int() for _, _, id_BM in blocks])
    values = torch.cat([cosine_BM[id_BM >= 0] for _, cosine_BM, id_BM in blocks])
    order_B = item_B.argsort()
    _, edge_T = ranges((count_B.cumsum(0) - count_B)[order_B], count_B[order_B])
    return count_B[order_B], ids[edge_T], values[edge_T]
