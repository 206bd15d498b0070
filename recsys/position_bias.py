"""The attention bias of a distance in rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.embedding_table import EmbeddingTable

__all__ = ["PositionBias"]


class PositionBias(nn.Module):
    """Per head a learned number for each distance i − j in rows; distances beyond ``max_distance`` share the last."""

    def __init__(self, num_heads: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.table = EmbeddingTable(max_distance + 1, num_heads)

    def forward(self, distance_BNL: Tensor) -> Tensor:
        """[B, N, L] distances to a [B, H, N, L] bias; negative ones (rows never seen) count as 0."""
        bias: Tensor = self.table.by_column(distance_BNL.clamp(0, self.max_distance))
        return bias

    def same_row(self) -> Tensor:
        """[H]: the bias of a row to itself."""
        bias: Tensor = self.table(torch.zeros(1, dtype=torch.int64, device=self.table.weight.device))[0]
        return bias
