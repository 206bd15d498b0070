"""Text-kNN: cosine of the items' texts to those of the history, weighted by recency; it reaches items nobody knows yet.

Suffixes: I = items, V = words or vector dimensions, B = items of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.index.text_neighbours import nearest_by_cosine
from recsys.pipelines.baselines.item_knn import MAX_FULL_ITEMS, MAX_NEIGHBOURS, LinearScorer, best_decay
from recsys.pipelines.baselines.selection import validation_ndcg, validation_sample

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["fit_text_knn", "text_sources"]

SPARSE, VECTORS = "tf-idf", "vectors"
_BLOCK = 2048


def text_sources(dataset: Dataset) -> list[tuple[str, ...]]:
    """What cosines may be taken of: the sparse text, the mean over all kinds of item vectors, and both added up."""
    one = [(SPARSE,)] if dataset.sparse_text is not None else []
    if dataset.relation_vectors:
        one.append((VECTORS,))
    return [*one, *([(SPARSE, VECTORS)] if len(one) == 2 else [])]


def fit_text_knn(dataset: Dataset) -> LinearScorer:
    """What the cosine is taken of, then the decay of the history chosen on validation.

    Raises:
        InputError: the items have neither text nor vectors.
    """
    sources = text_sources(dataset)
    if not sources:
        raise InputError(
            f"the baseline text_knn needs item texts or vectors, and {dataset.path} has none; prepare it with --items"
        )
    requests = validation_sample(dataset)
    best: tuple[str, ...] = sources[0]
    best_ndcg = -1.0
    for source in sources if len(sources) > 1 else ():
        ndcg = validation_ndcg(dataset, _scorer(dataset, source).score, requests)
        if ndcg > best_ndcg:
            best, best_ndcg = source, ndcg
    return best_decay(dataset, _scorer(dataset, best), requests)


def _scorer(dataset: Dataset, source: tuple[str, ...]) -> LinearScorer:
    cosine_II = sum_of_cosines(dataset, source)
    return LinearScorer("text_knn", dataset, cosine_II, {"source": "+".join(source), "decay": 0.8})


def sum_of_cosines(dataset: Dataset, source: tuple[str, ...]) -> NDArray[np.float32] | scipy.sparse.csr_matrix:
    """[I, I] cosines of item to item, added up over ``source``.

    Larger catalogues keep those of the nearest of every item, found for the text and each kind of vectors apart.
    """
    parts: list[tuple[Any, np.float32]] = []
    if SPARSE in source:
        parts.append((dataset.sparse_text, np.float32(1)))
    if VECTORS in source:
        share = np.float32(1 / len(dataset.relation_vectors))
        parts += [(rows_IV, share) for rows_IV in dataset.relation_vectors.values()]
    if dataset.num_items > MAX_FULL_ITEMS:
        nearest = [_nearest(rows_IV, dataset.num_items) * share for rows_IV, share in parts]
        return sum(nearest[1:], start=nearest[0])
    cosine_II = np.zeros((dataset.num_items, dataset.num_items), dtype=np.float32)
    for rows_IV, share in parts:
        columns_VI = rows_IV.T.tocsr() if scipy.sparse.issparse(rows_IV) else rows_IV.T
        for low in range(0, dataset.num_items, _BLOCK):
            block_BI = rows_IV[low : low + _BLOCK] @ columns_VI
            if scipy.sparse.issparse(block_BI):
                block_BI = block_BI.toarray()
            cosine_II[low : low + _BLOCK] += share * block_BI
    return cosine_II


def _nearest(rows_IV: Any, num_items: int) -> scipy.sparse.csr_matrix:
    row, column, value = [], [], []
    for item_B, cosine_BM, id_BM in nearest_by_cosine(rows_IV, MAX_NEIGHBOURS):
        found_BM = (id_BM >= 0).numpy()
        row.append(np.repeat(item_B, found_BM.sum(1)))
        column.append(id_BM.numpy()[found_BM])
        value.append(cosine_BM.numpy()[found_BM])
    places = (np.concatenate(row), np.concatenate(column))
    return scipy.sparse.csr_matrix((np.concatenate(value), places), shape=(num_items, num_items), dtype=np.float32)
