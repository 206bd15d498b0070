"""The retriever that scores the whole catalogue by long codes which the model predicts all at once.

Suffixes: B = users, I = items, J = codes of an item, K = hits, E = exclusions, N = allowed items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.index.hits import Hits
from recsys.index.protocol import check_lists
from recsys.kernels.topk import topk_smaller_id
from recsys.model import UnifiedModel
from recsys.parallel_codes import code_scores
from recsys.user_state import UserStates

__all__ = ["ParallelRetriever"]

_SCORES_AT_ONCE = 1 << 23


class ParallelRetriever:
    """score(i) = mean over codes of log p(code of i), in nats; every item is scored.

    Args:
        model: with a head of parallel codes; in eval mode.
    """

    name = "parallel"
    reads_cache = False
    lists_only = False
    sources: tuple[str, ...] = ()

    def __init__(self, model: UnifiedModel) -> None:
        if model.parallel_codes is None:
            raise ValueError("this model predicts no parallel codes; train it with such codes of the items")
        self.model, self.head = model, model.parallel_codes
        self.code_IJ = model.codes.of("parallel_codes")

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
        check_lists(len(query_BD), k, exclude_QE, allow_N, len(self.code_IJ))
        code_IJ = self.code_IJ if allow_N is None else self.code_IJ[allow_N]
        id_I = torch.arange(len(self.code_IJ), device=query_BD.device) if allow_N is None else allow_N
        step = max(1, _SCORES_AT_ONCE // max(1, len(self.code_IJ)))
        parts = []
        for low in range(0, max(1, len(query_BD)), step):
            query_QD = query_BD[low : low + step]
            score_QI = code_scores(self.head(query_QD), code_IJ)
            if exclude_QE is not None:
                row_X, place_X = (exclude_QE[low : low + step] >= 0).nonzero(as_tuple=True)
                out_X = exclude_QE[low : low + step][row_X, place_X]
                column_X = torch.searchsorted(id_I, out_X).clamp_max(max(0, len(id_I) - 1))
                there_X = id_I[column_X] == out_X if len(id_I) else torch.zeros_like(out_X, dtype=torch.bool)
                score_QI[row_X[there_X], column_X[there_X]] = -torch.inf
            parts.append(topk_smaller_id(score_QI, id_I.expand_as(score_QI), k))
        return Hits(torch.cat([ids for _, ids in parts]), torch.cat([scores for scores, _ in parts]))

    @torch.no_grad()
    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue."""
        return code_scores(self.head(self.model.query(states, at_B, surface_B)), self.code_IJ)

    @torch.no_grad()
    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 scores of some items; padded places (−1) mean nothing."""
        logp_JBK = self.head(self.model.query(states, at_B, surface_B))
        code_BCJ = self.code_IJ[item_BC.clamp_min(0)].long()
        return torch.stack([logp.gather(1, code_BCJ[..., j]) for j, logp in enumerate(logp_JBK)]).mean(0)
