"""Labels spread to similar items: what reads alike is a plausible next item as well.

Suffixes: I = items, K = neighbours, N = targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NeighbourTargets"]


class NeighbourTargets:
    """Replaces a share of retrieval targets by items that are near them in content, drawn by their weights.

    In expectation this is the softmax loss on a label that keeps 1 − share on the target and spreads the rest over its
    neighbours, so that item vectors learn from the events of similar items (a rule as a teacher of the model).

    Args:
        neighbour_IK: ids of the nearest items, -1 = none. weight_IK: how likely each is drawn, 0 where there is none.
        share: of the targets with a neighbour; 0 changes nothing.
    """

    def __init__(self, neighbour_IK: Tensor, weight_IK: Tensor, share: float) -> None:
        self.neighbour_IK, self.weight_IK, self.share = neighbour_IK, weight_IK, share

    def to(self, device: torch.device) -> NeighbourTargets:
        return NeighbourTargets(self.neighbour_IK.to(device), self.weight_IK.to(device), self.share)

    def __call__(self, target_N: Tensor) -> Tensor:
        """[N] targets, some of them replaced; draws from torch's generator."""
        weight_NK = self.weight_IK[target_N]
        swap_N = (torch.rand(len(target_N), device=target_N.device) < self.share) & (weight_NK.sum(1) > 0)
        at_M = swap_N.nonzero().flatten()
        if not len(at_M):
            return target_N
        drawn_M1 = torch.multinomial(weight_NK[at_M], 1)
        return target_N.index_copy(0, at_M, self.neighbour_IK[target_N[at_M]].gather(1, drawn_M1).squeeze(1))
