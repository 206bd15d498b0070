"""Labels spread to similar items: what reads alike is a plausible next item as well.

Suffixes: I = items, K = neighbours, L = 1 + K items of a label, N = targets.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

__all__ = ["NeighbourTargets"]


class NeighbourTargets:
    """Gives a share of each retrieval target's label to the items near it in content.

    Item vectors so learn from the events of similar items (a rule as a teacher of the model). The full softmax takes
    the whole label; a sampled one takes a single item drawn from it, which is the same in expectation.

    Args:
        neighbour_IK: ids of the nearest items, -1 = none. weight_IK: how likely each is drawn, 0 where there is none.
        share: of the label of a target that has a neighbour, in [0, 1).
    """

    def __init__(self, neighbour_IK: Tensor, weight_IK: Tensor, share: float) -> None:
        self.neighbour_IK = neighbour_IK
        self.weight_IK = share * weight_IK / weight_IK.sum(1, keepdim=True).clamp_min(torch.finfo().tiny)

    def to(self, device: torch.device) -> NeighbourTargets:
        moved = copy(self)
        moved.neighbour_IK, moved.weight_IK = self.neighbour_IK.to(device), self.weight_IK.to(device)
        return moved

    def labels(self, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """[N, L] items, the target first (it also stands where there is no neighbour), and shares that add up to 1."""
        weight_NK = self.weight_IK[target_N]
        neighbour_NK = torch.where(weight_NK > 0, self.neighbour_IK[target_N], target_N[:, None])
        own_N1 = 1.0 - weight_NK.sum(1, keepdim=True)
        return torch.cat([target_N[:, None], neighbour_NK], 1), torch.cat([own_N1, weight_NK], 1)

    def drawn(self, target_N: Tensor) -> Tensor:
        """[N] one item of each label; draws from torch's generator."""
        label_NL, weight_NL = self.labels(target_N)
        return label_NL.gather(1, torch.multinomial(weight_NL, 1)).squeeze(1) if len(target_N) else target_N
