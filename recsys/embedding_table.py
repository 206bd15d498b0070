"""The one place where embedding rows are read, so that a sharded table can stand in for it.

Suffixes: K = rows of the table, H = its columns, P = pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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

    def by_column(self, rows: Tensor) -> Tensor:
        """The same numbers laid out [B, dim, ...] for ids [B, ...]: for narrow tables that very many ids read."""
        if rows.device.type == "cpu":
            return _ByColumn.apply(self.weight, rows) if torch.is_grad_enabled() else _by_column(self.weight, rows)
        return self(rows).movedim(-1, 1)

    def all_rows(self) -> Tensor:
        """[num_rows, dim]; a sharded table gathers here."""
        return self.weight


def _by_column(weight_KH: Tensor, rows: Tensor) -> Tensor:
    row_P = rows.flatten()
    columns = [weight_K.contiguous().index_select(0, row_P).view(rows.shape) for weight_K in weight_KH.unbind(1)]
    return torch.stack(columns, 1)


class _ByColumn(torch.autograd.Function):
    """Gathers and sums column by column, on a CPU about 20 times as fast as the gradient of rows of two numbers."""

    @staticmethod
    def forward(ctx: Any, weight_KH: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = len(weight_KH)
        return _by_column(weight_KH, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        row_P = ctx.saved_tensors[0].flatten()
        columns = [torch.bincount(row_P, grad_h.flatten(), ctx.num_rows) for grad_h in grad.unbind(1)]
        return torch.stack(columns, 1).to(grad.dtype), None
