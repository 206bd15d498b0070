"""Target-aware training: while it learns, the encoder also answers questions that name their item.

Candidates of a retrieval target, itself and negatives, each attend to the rows of the history up to the request, and a
softmax tells the target from the others: the ranker's loss of GRank (arXiv 2510.15299), beside that of retrieval.
Nothing of it runs at serving; what stays is an encoder whose rows tell more of items to come.

Suffixes: T = packed events, N = retrieval targets, C = candidates (the target first), P = pool of negatives, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.attention import Group, attend_packed
from recsys.model_config import ModelConfig

__all__ = ["TargetAware", "drawn_negatives"]


class TargetAware(nn.Module):
    """⟨Σ_t a_t V z_t, v⟩ over the rows t that a request sees, with attention a of the candidate's vector v."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_negatives = config.target_aware_negatives
        self.query, self.key, self.value = (nn.Linear(config.dim, config.dim, bias=False) for _ in range(3))
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.eye_(self.value.weight)  # rows and item vectors share their space from the start

    def forward(self, z_TD: Tensor, at_N: Tensor, candidate_NCD: Tensor, groups: Sequence[Group]) -> Tensor:
        """[N, C] scores.

        Args:
            z_TD: output rows of packed events. groups: of these events.
            at_N: the event after which a request stands; it sees that event and those before it.
            candidate_NCD: item vectors of its candidates.
        """
        shape = (len(z_TD), *candidate_NCD.shape[1:])
        q_TCD = candidate_NCD.new_zeros(shape).index_copy(0, at_N, self.query(candidate_NCD))
        k_TCD, v_TCD = (layer(z_TD)[:, None].expand(shape) for layer in (self.key, self.value))
        # Candidates take the place of heads: all of a request attend to the same rows.
        read_TCD = attend_packed(q_TCD, k_TCD, v_TCD, groups, None, kind="softmax", max_len=1)
        scores: Tensor = (read_TCD[at_N] * candidate_NCD).sum(-1)
        return scores

    def loss(
        self,
        z_TD: Tensor,
        at_N: Tensor,
        query_ND: Tensor,
        target_N: Tensor,
        trained_J: Tensor,
        lookup: Callable[[Tensor], Tensor],
        groups: Sequence[Group],
    ) -> Tensor:
        """Mean over targets of −log softmax; 0 without any.

        Args:
            query_ND: retrieval queries, which choose the hard half of the negatives.
            trained_J: items that negatives are drawn from, the other targets beside them.
            lookup: item ids to vectors [..., D] as retrieval scores read them.
        """
        if not len(at_N):
            return z_TD.sum() * 0.0
        negative_NC = drawn_negatives(query_ND, target_N, trained_J, lookup, self.num_negatives)
        candidate_NC = torch.cat([target_N[:, None], negative_NC], 1)
        score_NC = self(z_TD, at_N, lookup(candidate_NC), groups)
        own_NC = F.pad(negative_NC == target_N[:, None], (1, 0))
        return F.cross_entropy(score_NC.masked_fill(own_NC, float("-inf")), torch.zeros_like(target_N))


@torch.no_grad()
def drawn_negatives(
    query_ND: Tensor, target_N: Tensor, trained_J: Tensor, lookup: Callable[[Tensor], Tensor], num_negatives: int
) -> Tensor:
    """[N, num_negatives] items: half of them hard, i.e. scored highest in a pool, the others drawn evenly.

    The pool, one for all requests, is 32 items for every negative: targets of the batch, and as many drawn evenly. A
    request's own target is none of its hard ones, unless the pool holds little else; it may be among the others.
    """
    size = 16 * num_negatives
    shuffled_N = target_N[torch.randperm(len(target_N), device=target_N.device)[:size]]
    even_P = trained_J[torch.randint(len(trained_J), (size,), device=target_N.device)]
    pool_P = torch.cat([shuffled_N, even_P]).unique()
    score_NP = (query_ND @ lookup(pool_P).T).masked_fill(pool_P == target_N[:, None], float("-inf"))
    num_hard = min(num_negatives // 2, len(pool_P))
    hard_NC = pool_P[score_NP.topk(num_hard, 1).indices]
    others = torch.randint(len(trained_J), (len(target_N), num_negatives - num_hard), device=target_N.device)
    return torch.cat([hard_NC, trained_J[others]], 1)
