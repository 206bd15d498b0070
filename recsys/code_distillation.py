"""What dense retrieval thinks of items, as labels for the heads of semantic IDs.

A head that learns from the next item alone sees one label a row; the softmax over all items that the finished encoder
gives is a label for every prefix and every item (knowledge distillation, arXiv 1503.02531). Suffixes: N = rows,
I = items, P = places (items in the order of their codes), D = width, L = levels, C = children of a prefix,
M = candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.code_children import CodeChildren

__all__ = ["CodeDistillation"]

_LEAST = 1e-5
"""Probability of a prefix below which the item alone is the label of what follows it."""


class CodeDistillation:
    """Labels from item vectors.

    Args:
        vectors_ID: [I, D] item vectors of dense retrieval.
        item_counts_I: [I] training events per item; an item without any is no candidate.
        share: of a label that the teacher decides; the rest goes to the next item.
        candidates: items drawn for a step of the heads that score whole items, beside its targets.
        children: of the codes that a decoder generates, where there is one.
    """

    def __init__(
        self, vectors_ID: Tensor, item_counts_I: Tensor, share: float, candidates: int, children: CodeChildren | None
    ) -> None:
        self.vectors_ID, self.share, self.num_random, self.children = vectors_ID, share, candidates, children
        self.trained_J = (item_counts_I > 0).nonzero().flatten()
        self.share_I = item_counts_I.double() / item_counts_I.sum().clamp_min(1)
        if children is not None:
            self.item_P = children.place_I.argsort()
            self.sorted_PD = vectors_ID[self.item_P]

    # -- whole items ----------------------------------------------------------------------------------------------

    def candidates(self, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Items that a step compares: its targets and random ones, or all trained items where these are no more.

        Returns:
            [M] int64 items, rising, and [M] logarithms of the chance that each was to be among them.
        """
        num_trained = len(self.trained_J)
        if num_trained <= self.num_random:
            return self.trained_J, torch.zeros(num_trained, device=target_N.device)
        drawn_M = self.trained_J[torch.randint(num_trained, (self.num_random,), device=target_N.device)]
        item_M = torch.unique(torch.cat([target_N, drawn_M]))
        left_M = self.num_random * torch.log1p(torch.tensor(-1.0 / num_trained, dtype=torch.float64))
        left_M = left_M + len(target_N) * torch.log1p(-self.share_I[item_M].clamp_max(0.5))
        return item_M, torch.log(-torch.expm1(left_M)).float()

    def items_loss(
        self, logit_NM: Tensor, query_ND: Tensor, target_N: Tensor, item_M: Tensor, log_chance_M: Tensor
    ) -> Tensor:
        """Mean over rows of the cross-entropy among candidates, in nats.

        Args:
            logit_NM: of the head. query_ND: [N, D] of dense retrieval. target_N: [N] items, each a candidate.
            item_M, log_chance_M: of :meth:`candidates`.
        """
        with torch.no_grad():
            label_NM = (query_ND @ self.vectors_ID[item_M].T - log_chance_M).softmax(1).mul_(self.share)
            own_N1 = torch.searchsorted(item_M, target_N)[:, None]
            label_NM.scatter_add_(1, own_N1, torch.full_like(own_N1, 1, dtype=label_NM.dtype) * (1.0 - self.share))
        return -(label_NM * (logit_NM - log_chance_M).log_softmax(1)).sum() / len(target_N)

    # -- code by code ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def followed(self, query_ND: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Items whose prefixes the decoder is asked for: the next item, or, in a share of the rows, one drawn from the
        teacher, so that it learns what follows prefixes that the next item does not have.

        Returns:
            [N] int64 items, [N] bool whether each is the next item, and [N, P + 1] sums of the teacher's probabilities
            over the items before each place.
        """
        p_NP = torch.softmax(query_ND @ self.sorted_PD.T, 1)
        below_NX = p_NP.new_zeros(len(p_NP), p_NP.shape[1] + 1)
        torch.cumsum(p_NP, 1, out=below_NX[:, 1:])
        is_own_N = torch.rand(len(target_N), device=target_N.device) >= self.share
        drawn_N1 = torch.rand(len(target_N), 1, device=target_N.device) * below_NX[:, -1:]
        place_N = (torch.searchsorted(below_NX, drawn_N1, right=True)[:, 0] - 1).clamp(0, p_NP.shape[1] - 1)
        return torch.where(is_own_N, target_N, self.item_P[place_N]), is_own_N, below_NX

    def codes_loss(
        self, logits: list[Tensor], item_N: Tensor, code_NL: Tensor, is_own_N: Tensor, below_NX: Tensor, among: bool
    ) -> Tensor:
        """Mean over rows of the cross-entropies of all levels, in nats.

        Args:
            logits: per level [N, K] after the codes of ``item_N``.
            item_N, is_own_N, below_NX: of :meth:`followed`. code_NL: [N, L] int64 codes of ``item_N``.
            among: whether the softmax of a level runs over the codes that continue the prefix alone.
        """
        assert self.children is not None
        loss = logits[0].new_zeros(())
        for level, logit_NK in enumerate(logits):
            prefix_N = self.children.prefix_IL[item_N, level]
            child_NC, code_NC = self.children.children(level, prefix_N)
            with torch.no_grad():
                start_X = self.children.levels[level].start_N1.long()
                known_NC = child_NC >= 0
                child_NC = child_NC.clamp_min(0)
                mass_NC = below_NX.gather(1, start_X[child_NC + 1]) - below_NX.gather(1, start_X[child_NC])
                mass_NC = mass_NC.masked_fill(~known_NC, 0.0)
                total_N1 = mass_NC.sum(1, keepdim=True)
                own_NC = (code_NC == code_NL[:, level, None]) & known_NC
                # Sums in float32 say nothing of what follows a prefix that the teacher gives next to nothing to.
                soft_NC = torch.where(total_N1 > _LEAST, mass_NC / total_N1.clamp_min(_LEAST), own_NC.float())
                share_N1 = torch.where(is_own_N, self.share, 1.0)[:, None]
                label_NC = share_N1 * soft_NC + (1.0 - share_N1) * own_NC
            if among:
                logit_NC = logit_NK.gather(1, code_NC).masked_fill(~known_NC, -torch.inf)
                logp_NC = logit_NC.log_softmax(1).masked_fill(~known_NC, 0.0)
            else:
                logp_NC = logit_NK.log_softmax(1).gather(1, code_NC)
            loss = loss - (label_NC * logp_NC).sum() / len(item_N)
        return loss
