"""The dense retriever: inner products of a user's query with every item vector, with memory terms beside them.

Suffixes: B = users, D = width, I = items, K = hits, C = candidates, E = exclusions, X = pairs, N = allowed items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.index.exact import exact_scores
from recsys.index.hits import Hits
from recsys.index.memory_terms import MemoryTerms
from recsys.index.protocol import VectorIndex, check_lists
from recsys.kernels.topk import largest, topk_smaller_id
from recsys.model import UnifiedModel
from recsys.user_state import UserStates

__all__ = ["DenseRetriever"]

_WHOLE_ITEMS = 1 << 16
"""Catalogues up to this size are scored whole where there are memory terms; above, neighbours are merged with hits."""
_SCORES_AT_ONCE = 1 << 23
_SPARE = 32
"""Candidates beyond k whose scores are computed again, so that rounding of a matrix product decides nothing."""


class DenseRetriever:
    """score(i) = w · <query, vectors[i]> + Σ_j Σ_r b_{r,j} · f_r(h_j -> i), up to a constant of the request.

    The vector index holds the learned part only. All terms being at least 0, an item that is no neighbour of a recent
    item and stands outside the k best learned scores is behind k others: the k best hits of the index and all
    neighbours hold the k best of the sum, whatever the weights.

    Args:
        model: makes the queries; in eval mode.
        index: over ``vectors``; the exact one returns the true top-k, an approximate one may miss some. Its items that
            are gone are not returned.
        vectors: [I, D] float32, of the same model.
        name: ``dense``, or ``dense_learned`` for the learned part alone.
        memory: the terms; None = the learned part alone.
        learned: w.
    """

    reads_cache = False
    lists_only = False
    sources: tuple[str, ...] = ()

    def __init__(
        self,
        model: UnifiedModel,
        index: VectorIndex,
        vectors: Tensor,
        name: str = "dense",
        *,
        memory: MemoryTerms | None = None,
        learned: float = 1.0,
    ) -> None:
        if index.num_items != len(vectors):
            raise ValueError(f"the index holds {index.num_items} items but there are {len(vectors)} vectors")
        if memory is not None and memory.graph.num_items != len(vectors):
            raise ValueError(f"the graph holds {memory.graph.num_items} items but there are {len(vectors)} vectors")
        self.model, self.index, self.vectors, self.name = model, index, vectors, name
        self.memory, self.learned = memory, learned
        self._whole = memory is not None and index.kind == "exact" and len(vectors) <= _WHOLE_ITEMS

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
        query_BD = self._query(states, at_B, surface_B)
        if self.memory is None:
            return self.index.search(query_BD, k, exclude_QE=exclude_QE, allow_N=allow_N)
        check_lists(len(query_BD), k, exclude_QE, allow_N, len(self.vectors))
        is_new_B = states.num_events_B == 0
        if not self._whole:
            return self._merged(query_BD, states.recent_BM, is_new_B, k, exclude_QE, allow_N, self.memory)
        step = max(1, _SCORES_AT_ONCE // max(1, len(self.vectors)))
        parts = [
            self._whole_catalogue(
                query_BD[low : low + step],
                states.recent_BM[low : low + step],
                is_new_B[low : low + step],
                k,
                None if exclude_QE is None else exclude_QE[low : low + step],
                allow_N,
                self.memory,
            )
            for low in range(0, max(1, len(query_BD)), step)
        ]
        return Hits(torch.cat([ids for _, ids in parts]), torch.cat([scores for scores, _ in parts]))

    @torch.no_grad()
    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue, whatever the index would find."""
        score_BI = self._query(states, at_B, surface_B) @ self.vectors.T
        if self.memory is not None:
            self.memory.add_to(score_BI, states.recent_BM, states.num_events_B == 0)
        return score_BI

    @torch.no_grad()
    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 scores of some items, those that a search returns; padded places (−1) mean nothing.

        Memory does not grow with the catalogue.
        """
        query_BD = self._query(states, at_B, surface_B)
        score_BC = exact_scores(self.vectors, query_BD, item_BC)
        if self.memory is None:
            return score_BC
        return score_BC + self.memory.sums_of(states.recent_BM, item_BC, states.num_events_B == 0)

    @torch.no_grad()
    def learned_scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 inner products alone, with weight 1; padded places (−1) mean nothing."""
        return exact_scores(self.vectors, self.model.query(states, at_B, surface_B), item_BC)

    def _query(self, states: UserStates, at_B: Tensor, surface_B: Tensor) -> Tensor:
        query_BD = self.model.query(states, at_B, surface_B)
        return query_BD if self.learned == 1.0 else query_BD * self.learned

    def _whole_catalogue(
        self,
        query_BD: Tensor,
        recent_BM: Tensor,
        is_new_B: Tensor,
        k: int,
        exclude_BE: Tensor | None,
        allow_N: Tensor | None,
        memory: MemoryTerms,
    ) -> tuple[Tensor, Tensor]:
        memory_BI = query_BD.new_zeros(len(query_BD), len(self.vectors))
        memory.add_to(memory_BI, recent_BM, is_new_B)
        score_BI = torch.addmm(memory_BI, query_BD, self.vectors.T)
        if exclude_BE is not None:
            user_X, place_X = (exclude_BE >= 0).nonzero(as_tuple=True)
            score_BI[user_X, exclude_BE[user_X, place_X]] = -torch.inf
        if self.index.gone_I is not None:
            score_BI.masked_fill_(self.index.gone_I, -torch.inf)
        if allow_N is None:
            best_BC, id_BC = largest(score_BI, min(k + _SPARE, score_BI.shape[1]))
        else:
            best_BC, place_BC = largest(score_BI[:, allow_N], min(k + _SPARE, len(allow_N)))
            id_BC = allow_N[place_BC]
        id_BC = id_BC.masked_fill(best_BC == -torch.inf, -1)
        exact_BC = exact_scores(self.vectors, query_BD, id_BC) + memory_BI.gather(1, id_BC.clamp_min(0))
        return topk_smaller_id(exact_BC, id_BC, k)

    def _merged(
        self,
        query_BD: Tensor,
        recent_BM: Tensor,
        is_new_B: Tensor,
        k: int,
        exclude_BE: Tensor | None,
        allow_N: Tensor | None,
        memory: MemoryTerms,
    ) -> Hits:
        hits = self.index.search(query_BD, k, exclude_QE=exclude_BE, allow_N=allow_N)
        num_items = len(self.vectors)
        user_X, item_X, sum_X = memory.pairs(recent_BM, is_new_B)
        key_X = user_X * num_items + item_X
        # A hit that is a neighbour as well is scored among the neighbours.
        row_BK = torch.arange(len(query_BD), device=key_X.device)[:, None]
        double_BK = torch.isin(row_BK * num_items + hits.ids_QK, key_X) & (hits.ids_QK >= 0)
        keep_X = torch.ones_like(key_X, dtype=torch.bool)
        if exclude_BE is not None:
            at_E, place_E = (exclude_BE >= 0).nonzero(as_tuple=True)
            keep_X &= ~torch.isin(key_X, at_E * num_items + exclude_BE[at_E, place_E])
        if allow_N is not None:
            keep_X &= torch.isin(item_X, allow_N)
        if self.index.gone_I is not None:
            keep_X &= ~self.index.gone_I[item_X]
        user_X, item_X, sum_X = user_X[keep_X], item_X[keep_X], sum_X[keep_X]
        count_B = torch.bincount(user_X, minlength=len(query_BD))
        column_X = torch.arange(len(user_X), device=user_X.device) - (count_B.cumsum(0) - count_B)[user_X]
        shape = (len(query_BD), int(count_B.max()) if len(count_B) else 0)
        id_BC = torch.full(shape, -1, dtype=torch.int64, device=user_X.device)
        sum_BC = torch.zeros(shape, device=user_X.device)
        id_BC[user_X, column_X], sum_BC[user_X, column_X] = item_X, sum_X
        score_BC = exact_scores(self.vectors, query_BD, id_BC) + sum_BC
        best, ids = topk_smaller_id(
            torch.cat([score_BC, hits.scores_QK], 1), torch.cat([id_BC, hits.ids_QK.masked_fill(double_BK, -1)], 1), k
        )
        return Hits(ids, best)
