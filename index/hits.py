"""What every search returns.

Suffixes: Q = queries, K = hits asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Hits", "SourcedHits"]


@dataclass(frozen=True, slots=True)
class Hits:
    """Best first; equal scores go to the smaller id; unfilled places are (-1, -inf)."""

    ids_QK: Tensor
    """[Q, K] int64 internal item ids."""
    scores_QK: Tensor
    """[Q, K] float32, higher is better."""


@dataclass(frozen=True, slots=True)
class SourcedHits(Hits):
    """Hits of a search that joins several."""

    source_QK: Tensor
    """[Q, K] int64, which of the joined searches brought each hit: a place in the retriever's ``sources``."""
