"""How many events ago the last positive event was: a causal feature of a row.

Suffixes: T = packed events, S = sequences, any leading shape otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.embedding_table import EmbeddingTable

__all__ = ["PositiveAge", "age_after", "positive_ages"]

_BOUNDARIES = (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 50, 100)


def positive_ages(positive_T: Tensor, position_T: Tensor, first_age_T: Tensor | None = None) -> Tensor:
    """[T] events from the last positive event before each event; 1 = the event before it, 0 = none.

    Args:
        positive_T: [T] bool. position_T: place in the sequence, from 0; rows of a sequence are adjacent.
        first_age_T: age of each row's first row where sequences continue earlier ones; None = they start.

    >>> positive_ages(torch.tensor([False, True, False, False, True]), torch.tensor([0, 1, 2, 3, 0])).tolist()
    [0, 0, 1, 2, 0]
    """
    row_T = torch.arange(len(positive_T), device=positive_T.device)
    none_T = torch.full_like(row_T, -1)
    last_T = torch.where(positive_T, row_T, none_T)
    before_T = torch.cat([none_T[:1], last_T[:-1]])
    if len(row_T):
        before_T = before_T.cummax(0).values
    inside_T = before_T >= row_T - position_T
    if first_age_T is None:
        first_age_T = torch.zeros_like(row_T)
    earlier_T = torch.where(first_age_T > 0, first_age_T + position_T, 0)
    return torch.where(inside_T, row_T - before_T, earlier_T)


def age_after(age: Tensor, positive: Tensor) -> Tensor:
    """Age at the place after a row, from the row's own age and whether it is positive."""
    return torch.where(positive, 1, torch.where(age > 0, age + 1, 0))


class PositiveAge(nn.Module):
    """A learned vector for each bucket of ages."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = EmbeddingTable(len(_BOUNDARIES) + 1, dim)

    def forward(self, age: Tensor) -> Tensor:
        """[..., dim] for integer ages of any shape."""
        bounds = torch.tensor(_BOUNDARIES, dtype=torch.int64, device=age.device)
        vector: Tensor = self.table(torch.bucketize(age, bounds, right=True))
        return vector
