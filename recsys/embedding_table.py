"""The one place where embedding rows are read, so that a sharded table can stand in for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["EmbeddingTable"]


class EmbeddingTable(nn.Module):
    """``num_rows`` learned vectors of width ``dim``, drawn from N(0, std²)."""

    def __init__(self, num_rows: int, dim: int, *, std: float = 0.02) -> None:
        super().__init__()
        self.num_rows, self.dim = num_rows, dim
        self.weight = nn.Parameter(torch.empty(num_rows, dim).normal_(0.0, std))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows for ids of any shape: [..., dim]."""
        return torch.nn.functional.embedding(rows, self.weight)

    def all_rows(self) -> Tensor:
        """[num_rows, dim]; a sharded table gathers here."""
        return self.weight
