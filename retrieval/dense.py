"""The dense retriever: inner products of a user's query with every item vector.

Suffixes: B = users, D = width, I = items, K = hits, E = exclusions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.index.hits import Hits
from recsys.index.protocol import VectorIndex
from recsys.model import UnifiedModel
from recsys.user_state import UserStates

__all__ = ["DenseRetriever"]


class DenseRetriever:
    """Searches an index with the model's query. Score of item i = <query, vectors[i]>.

    Args:
        model: makes the queries; in eval mode.
        index: over ``vectors``; the exact one returns the true top-k, an approximate one may miss some.
        vectors: [I, D] float32, of the same model.
        name: ``dense`` or ``dense_learned``; the same scores as long as there are no memory terms beside them.
    """

    def __init__(self, model: UnifiedModel, index: VectorIndex, vectors: Tensor, name: str = "dense") -> None:
        if index.num_items != len(vectors):
            raise ValueError(f"the index holds {index.num_items} items but there are {len(vectors)} vectors")
        self.model = model
        self.index = index
        self.vectors = vectors
        self.name = name

    @torch.no_grad()
    def search(
        self,
        states: UserStates,
        k: int,
        *,
        at_B: Tensor,
        surface_B: Tensor,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> Hits:
        """The k best items of each user; see :class:`recsys.retrieval.protocol.Retriever`."""
        query_BD = self.model.query(states, at_B, surface_B)
        return self.index.search(query_BD, k, exclude_QE=exclude_QE, allow_N=allow_N)

    @torch.no_grad()
    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue, whatever the index would find."""
        return self.model.query(states, at_B, surface_B) @ self.vectors.T
