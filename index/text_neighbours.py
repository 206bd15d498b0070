"""The most similar items of every item, by cosine, without a table of all pairs.

Suffixes: I = items, V = vocabulary or vector dimensions, B = items of one block, C = candidates, M = neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.index.exact import ExactIndex
from recsys.kernels.topk import topk_smaller_id

__all__ = ["nearest_by_cosine"]

_PAIRS_AT_ONCE = 2**22
"""Pairs of items held at once; a pair costs some 50 bytes while its block is sorted."""
_ROWS_AT_ONCE = 1024
_MOST_ITEMS_OF_A_WORD = 2**15
"""A word that more items share (of a category, say) adds to cosines but brings no pair up: pairs would grow with the
square of the catalogue. Smaller catalogues are exact."""


def nearest_by_cosine(
    vectors: scipy.sparse.spmatrix | NDArray[Any] | Tensor, num_neighbours: int
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Neighbours of every item with a positive cosine, block by block.

    Args:
        vectors: [I, V] sparse (TF-IDF) or dense; rows need not have unit length, zero rows have no neighbours.
        num_neighbours: M, at most so many per item; of equal cosines the smaller ids.

    Yields:
        [B] items of the block, then [B, M] float32 cosines and [B, M] int64 ids, best first; unfilled = (-inf, -1).
        An item is no neighbour of itself. Every item comes exactly once, in no particular order. Of sparse vectors,
        pairs that share only words of more than 32,768 items are no neighbours.
    """
    if scipy.sparse.issparse(vectors):
        return _nearest_sparse(vectors, num_neighbours)
    return _nearest_dense(torch.as_tensor(vectors), num_neighbours)


def _nearest_dense(vector_IV: Tensor, num_neighbours: int) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    unit_IV = torch.nn.functional.normalize(vector_IV.to(torch.float32), dim=1)
    index = ExactIndex(unit_IV)
    for low in range(0, len(unit_IV), _ROWS_AT_ONCE):
        item_B = torch.arange(low, min(low + _ROWS_AT_ONCE, len(unit_IV)))
        hits = index.search(unit_IV[item_B], num_neighbours, exclude_QE=item_B.unsqueeze(1))
        positive_BM = hits.scores_QK > 0
        cosine_BM = hits.scores_QK.clamp(max=1.0).masked_fill(~positive_BM, -torch.inf)
        yield item_B.numpy(), cosine_BM, hits.ids_QK.masked_fill(~positive_BM, -1)


def _nearest_sparse(
    matrix: scipy.sparse.spmatrix, num_neighbours: int
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    unit_IV = scipy.sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    length_I = np.sqrt(np.asarray(unit_IV.multiply(unit_IV).sum(axis=1), dtype=np.float64)).ravel()
    unit_IV.data /= np.repeat(np.maximum(length_I, 1e-12), np.diff(unit_IV.indptr)).astype(np.float32)
    items_of_word = unit_IV.T.tocsr()
    word_items_V = np.diff(items_of_word.indptr)
    common_V = np.flatnonzero(word_items_V > _MOST_ITEMS_OF_A_WORD)
    common_IV = unit_IV[:, common_V]
    if len(common_V):
        rare_V = np.flatnonzero(word_items_V <= _MOST_ITEMS_OF_A_WORD)
        unit_IV, items_of_word, word_items_V = unit_IV[:, rare_V], items_of_word[rare_V], word_items_V[rare_V]
    # Upper bound of the items that share a word with an item. Blocks hold items of alike bounds, so that few places
    # are wasted when their ragged rows are laid side by side.
    bound_I = np.minimum(np.asarray((unit_IV != 0) @ word_items_V).ravel(), len(length_I)).astype(np.int64)
    order_I = np.argsort(bound_I, kind="stable")
    high = len(order_I)
    while high > 0:
        rows = min(_ROWS_AT_ONCE, max(1, _PAIRS_AT_ONCE // max(1, int(bound_I[order_I[high - 1]]))))
        item_B = order_I[max(0, high - rows) : high]
        high -= len(item_B)
        cosine = unit_IV[item_B] @ items_of_word
        if not len(common_V):
            yield item_B, *_best_of_block(cosine, item_B, num_neighbours)
            continue
        # The best by rare words, a few times over, are scored again with the common ones.
        cosine_BC, id_BC = _best_of_block(cosine, item_B, 4 * num_neighbours)
        row_P, place_P = (id_BC >= 0).nonzero(as_tuple=True)
        ours, theirs = common_IV[item_B[row_P.numpy()]], common_IV[id_BC[row_P, place_P].numpy()]
        rest_P = np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()
        cosine_BC[row_P, place_P] = (cosine_BC[row_P, place_P] + torch.from_numpy(rest_P)).clamp(max=1.0)
        yield item_B, *topk_smaller_id(cosine_BC, id_BC, num_neighbours)


def _best_of_block(
    cosine: scipy.sparse.csr_matrix, item_B: NDArray[np.int64], num_neighbours: int
) -> tuple[Tensor, Tensor]:
    count_B = np.diff(cosine.indptr)
    width = int(count_B.max(initial=0))
    row_C = np.repeat(np.arange(len(item_B)), count_B)
    place_C = np.arange(len(row_C)) - np.repeat(cosine.indptr[:-1].astype(np.int64), count_B)
    usable_C = (cosine.indices != item_B[row_C]) & (cosine.data > 0)
    id_BC = np.full((len(item_B), width), -1, dtype=np.int64)
    id_BC[row_C, place_C] = np.where(usable_C, cosine.indices, -1)
    cosine_BC = np.zeros((len(item_B), width), dtype=np.float32)
    cosine_BC[row_C, place_C] = np.minimum(cosine.data, 1.0)
    return topk_smaller_id(torch.from_numpy(cosine_BC), torch.from_numpy(id_BC), num_neighbours)
