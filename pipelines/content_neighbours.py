"""The nearest items by content, as labels of the retrieval loss.

Suffixes: I = items, K = neighbours, B = items of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.index.text_neighbours import nearest_by_cosine

__all__ = ["content_neighbours"]

_SHARPNESS = 10.0
"""A neighbour is drawn in proportion to exp(10 · cosine)."""


def content_neighbours(dataset: Dataset, count: int) -> tuple[Tensor, Tensor] | None:
    """[I, K] nearest items with training events and the weights to draw them with; None where items have no content.

    Nearness is the cosine of text-encoder or column vectors where the dataset has them (the first kind), else of
    sparse TF-IDF rows.

    Args:
        count: K; an item may have fewer, its other places are -1 with weight 0.
    """
    vectors = next(iter(dataset.relation_vectors.values()), dataset.sparse_text)
    if vectors is None:
        return None
    id_IK = torch.full((dataset.num_items, count), -1, dtype=torch.int64)
    cosine_IK = torch.full((dataset.num_items, count), -torch.inf)
    for item_B, cosine_BK, id_BK in nearest_by_cosine(vectors, count):
        rows = torch.from_numpy(item_B)
        id_IK[rows, : id_BK.shape[1]], cosine_IK[rows, : id_BK.shape[1]] = id_BK, cosine_BK
    trained_I = torch.from_numpy(dataset.train_item_counts() > 0)
    usable_IK = (id_IK >= 0) & trained_I[id_IK.clamp_min(0)]
    weight_IK = torch.where(usable_IK, torch.exp(_SHARPNESS * (cosine_IK - 1.0)), 0.0)
    return id_IK.masked_fill(~usable_IK, -1), weight_IK
