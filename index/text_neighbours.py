"""The most similar items of every item, by cosine, without a table of all pairs.

Suffixes: I = items, V = vocabulary or vector dimensions, B = items of one block, C = candidates, M = neighbours,
Q = items asked for, J = items they are compared with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.index.registry import INDEX_KINDS, build_index
from recsys.kernels.topk import topk_smaller_id

__all__ = ["Neighbours", "nearest_by_cosine", "unit_rows"]

Neighbours = tuple[NDArray[np.int64], Tensor, Tensor]
"""[B] items of a block, then [B, M] float32 cosines and [B, M] int64 ids, best first; unfilled = (-inf, -1)."""

_PAIRS_AT_ONCE = 2**22
"""Pairs of items held at once, or the number of items where that is more; a pair costs some 100 bytes meanwhile."""
_ROWS_AT_ONCE = 1024
_ITEMS_AT_ONCE = 2**14
"""Items whose blocks may come in any order."""
_MOST_ITEMS_OF_A_WORD = 2**15
"""A word that more items share (of a category, say) adds to cosines but brings no pair up: pairs would grow with the
square of the catalogue. Smaller catalogues are exact."""
_PAIRS_PER_ITEM = 20_000
"""Where more than _MOST_ITEMS_OF_A_WORD items have so many pairs on average, rarer words are held to be common too."""
EXACT_ITEMS = 100_000
"""Dense vectors of more items are searched by FAISS."""
_PROBES = 32
"""Inverted lists looked into, of √I: the work grows with the power 1.5 of the items."""


def nearest_by_cosine(
    vectors: scipy.sparse.spmatrix | NDArray[Any] | Tensor,
    num_neighbours: int,
    *,
    queries: range | None = None,
    among: range | None = None,
    method: str = "auto",
) -> Iterator[Neighbours]:
    """Neighbours of items with a positive cosine, block by block.

    Args:
        vectors: [I, V] sparse (TF-IDF) or dense; rows need not have unit length, zero rows have no neighbours.
        num_neighbours: M, at most so many per item; of equal cosines the smaller ids.
        queries: rows to find neighbours of; None = all.
        among: rows that may be neighbours; None = all.
        method: how dense vectors are searched, one of :data:`recsys.index.registry.INDEX_KINDS`, or auto: exactly among
            at most 100,000 items, else by inverted lists of FAISS (``ivf``), with a warning exactly where FAISS is not
            installed.

    Yields:
        :data:`Neighbours`. An item is no neighbour of itself. Every item of ``queries`` comes exactly once, within
        runs of 16,384 items in no particular order, run after run. Of sparse vectors, pairs that share only common
        words are no neighbours: words of more than 32,768 items, or of fewer in a catalogue above that size whose
        pairs would be more than 20,000 an item.
    """
    queries = range(vectors.shape[0]) if queries is None else queries
    among = range(vectors.shape[0]) if among is None else among
    if scipy.sparse.issparse(vectors):
        return _nearest_sparse(vectors, num_neighbours, queries, among)
    return _nearest_dense(torch.as_tensor(vectors), num_neighbours, queries, among, method)


def _nearest_dense(
    vector_IV: Tensor, num_neighbours: int, queries: range, among: range, method: str
) -> Iterator[Neighbours]:
    unit_JV = torch.nn.functional.normalize(vector_IV[among.start : among.stop].to(torch.float32), dim=1)
    kind = _index_kind(method, len(among))
    index = build_index(kind, unit_JV, **({"nprobe": _PROBES} if kind in ("ivf", "pq") else {}))
    for low in range(queries.start, queries.stop, _ROWS_AT_ONCE):
        item_B = torch.arange(low, min(low + _ROWS_AT_ONCE, queries.stop))
        inside_B = (item_B >= among.start) & (item_B < among.stop)
        own_B1 = torch.where(inside_B, item_B - among.start, -1).unsqueeze(1)
        unit_BV = torch.nn.functional.normalize(vector_IV[low : low + len(item_B)].to(torch.float32), dim=1)
        hits = index.search(unit_BV, num_neighbours, exclude_QE=own_B1)
        positive_BM = hits.scores_QK > 0
        cosine_BM = hits.scores_QK.clamp(max=1.0).masked_fill(~positive_BM, -torch.inf)
        yield item_B.numpy(), cosine_BM, (hits.ids_QK + among.start).masked_fill(~positive_BM, -1)


def _index_kind(method: str, num_items: int) -> str:
    if method != "auto":
        if method not in INDEX_KINDS:
            raise ValueError(f"there is no way {method!r} to find neighbours; choose auto, {', '.join(INDEX_KINDS)}")
        return method
    if num_items <= EXACT_ITEMS:
        return "exact"
    if find_spec("faiss") is None:
        warnings.warn(
            f"neighbours among {num_items:,} items are searched exactly, which takes time with the square of their "
            "number; pip install 'recsys[faiss]' for an approximate search",
            stacklevel=2,
        )
        return "exact"
    return "ivf"


def _nearest_sparse(
    matrix: scipy.sparse.spmatrix, num_neighbours: int, queries: range, among: range
) -> Iterator[Neighbours]:
    unit_IV = unit_rows(matrix)
    unit_JV = unit_IV if len(among) == unit_IV.shape[0] else unit_IV[among.start : among.stop]
    items_of_word = unit_JV.T.tocsr()
    word_items_V = np.diff(items_of_word.indptr).astype(np.int64)
    most = _most_items_of_a_word(word_items_V, len(among))
    common_V = np.flatnonzero(word_items_V > most)
    common_IV = unit_IV[:, common_V]
    if len(common_V):
        rare_V = np.flatnonzero(word_items_V <= most)
        unit_IV, items_of_word, word_items_V = unit_IV[:, rare_V], items_of_word[rare_V], word_items_V[rare_V]
    at_once = max(_PAIRS_AT_ONCE, len(among))
    for start in range(queries.start, queries.stop, _ITEMS_AT_ONCE):
        unit_QV = unit_IV[start : min(start + _ITEMS_AT_ONCE, queries.stop)]
        # Upper bound of the items that share a word with an item. Blocks hold items of alike bounds, so that few places
        # are wasted when their ragged rows are laid side by side.
        bound_Q = np.minimum(np.asarray((unit_QV != 0) @ word_items_V).ravel(), len(among))
        order_Q = np.argsort(bound_Q, kind="stable")
        high = len(order_Q)
        while high > 0:
            rows = min(_ROWS_AT_ONCE, max(1, at_once // max(1, int(bound_Q[order_Q[high - 1]]))))
            place_B = order_Q[max(0, high - rows) : high]
            item_B = place_B + start
            high -= len(place_B)
            cosine = unit_QV[place_B] @ items_of_word
            if not len(common_V):
                yield item_B, *_best_of_block(cosine, item_B, num_neighbours, among.start)
                continue
            # The best by rare words, a few times over, are scored again with the common ones.
            cosine_BC, id_BC = _best_of_block(cosine, item_B, 4 * num_neighbours, among.start)
            row_P, place_P = (id_BC >= 0).nonzero(as_tuple=True)
            ours, theirs = common_IV[item_B[row_P.numpy()]], common_IV[id_BC[row_P, place_P].numpy()]
            rest_P = np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()
            cosine_BC[row_P, place_P] = (cosine_BC[row_P, place_P] + torch.from_numpy(rest_P)).clamp(max=1.0)
            yield item_B, *topk_smaller_id(cosine_BC, id_BC, num_neighbours)


def unit_rows(matrix: scipy.sparse.spmatrix) -> scipy.sparse.csr_matrix:
    """The rows of a matrix at length 1, zero rows as they are; float32."""
    unit_IV = scipy.sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    length_I = np.sqrt(np.asarray(unit_IV.multiply(unit_IV).sum(axis=1), dtype=np.float64)).ravel()
    unit_IV.data /= np.repeat(np.maximum(length_I, 1e-12), np.diff(unit_IV.indptr)).astype(np.float32)
    return unit_IV


def _most_items_of_a_word(word_items_V: NDArray[np.int64], num_items: int) -> int:
    if num_items <= _MOST_ITEMS_OF_A_WORD:
        return _MOST_ITEMS_OF_A_WORD
    sorted_V = np.sort(word_items_V)
    affordable = int(np.searchsorted(np.cumsum(sorted_V**2), num_items * _PAIRS_PER_ITEM, side="right"))
    if affordable == len(sorted_V):
        return _MOST_ITEMS_OF_A_WORD
    # Below the first count that is too many, so that equally common words are treated alike.
    return min(_MOST_ITEMS_OF_A_WORD, int(sorted_V[affordable]) - 1)


def _best_of_block(
    cosine: scipy.sparse.csr_matrix, item_B: NDArray[np.int64], num_neighbours: int, first: int
) -> tuple[Tensor, Tensor]:
    count_B = np.diff(cosine.indptr)
    width = int(count_B.max(initial=0))
    row_C = np.repeat(np.arange(len(item_B)), count_B)
    place_C = np.arange(len(row_C)) - np.repeat(cosine.indptr[:-1].astype(np.int64), count_B)
    id_C = cosine.indices.astype(np.int64) + first
    usable_C = (id_C != item_B[row_C]) & (cosine.data > 0)
    id_BC = np.full((len(item_B), width), -1, dtype=np.int64)
    id_BC[row_C, place_C] = np.where(usable_C, id_C, -1)
    cosine_BC = np.zeros((len(item_B), width), dtype=np.float32)
    cosine_BC[row_C, place_C] = np.minimum(cosine.data, 1.0)
    return topk_smaller_id(torch.from_numpy(cosine_BC), torch.from_numpy(id_BC), num_neighbours)
