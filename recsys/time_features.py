"""What clock times become: buckets of gaps, calendar angles, and the attention bias of a time difference.

Nothing here looks at absolute time through float32: gaps are integers, and angles come from (t mod period) in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recsys.embedding_table import EmbeddingTable
from recsys.model_config import ModelConfig

__all__ = ["GAP_BOUNDARIES", "NUM_BUCKETS", "UNKNOWN_GAP", "ContextFeatures", "TimeBias", "gap_bucket", "request_gap"]

_DAY, _WEEK = 86_400, 604_800
GAP_BOUNDARIES = sorted({math.ceil(math.exp(0.301 * power)) for power in range(1, 65)})
"""Bucket b > 0 begins at the b-th of these gaps, in seconds."""
_BOUNDS = torch.tensor(GAP_BOUNDARIES, dtype=torch.int64)
NUM_BUCKETS = len(GAP_BOUNDARIES) + 2
"""Log buckets of a gap in seconds (about 0.3 in ln, as in HSTU, arXiv 2402.17152), and a last one for *unknown*."""
UNKNOWN_GAP = -1
"""A gap that is not known: no previous event, or a time the log does not vouch for."""


def gap_bucket(gap_seconds: Tensor) -> Tensor:
    """Bucket of integer gaps of any shape; negative gaps are *unknown*."""
    bucket = torch.bucketize(gap_seconds, _BOUNDS.to(gap_seconds.device), right=True)
    return torch.where(gap_seconds < 0, NUM_BUCKETS - 1, bucket)


def request_gap(at_B: Tensor, last_time_B: Tensor) -> Tensor:
    """Seconds from the last event of a user state to a request; unknown where that time is (-1)."""
    return torch.where(last_time_B >= 0, (at_B - last_time_B).clamp_min(0), UNKNOWN_GAP)


class TimeBias(nn.Module):
    """Per head a learned number for each bucket of t_i − t_j."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.table = EmbeddingTable(NUM_BUCKETS, num_heads)

    def forward(self, bucket_BNL: Tensor) -> Tensor:
        """[B, N, L] buckets to a [B, H, N, L] bias."""
        bias: Tensor = self.table.by_column(bucket_BNL)
        return bias

    def same_time(self) -> Tensor:
        """[H]: the bias of a row to itself."""
        bias: Tensor = self.table.all_rows()[0]
        return bias


class ContextFeatures(nn.Module):
    """Surface and time of an event or of a request, as one vector of width ``dim`` (0 where neither says anything)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.surface = EmbeddingTable(config.num_surfaces, 16, std=0.1) if config.use_surfaces else None
        self.gap = EmbeddingTable(NUM_BUCKETS, 16, std=0.1) if config.use_time else None
        self.dim = (16 if config.use_surfaces else 0) + (20 if config.use_time else 0)

    def forward(self, surface: Tensor, time: Tensor, time_known: Tensor, gap: Tensor) -> Tensor | None:
        """Integer tensors of one shape; ``gap`` in seconds, :data:`UNKNOWN_GAP` where unknown. [..., dim] or None."""
        parts: list[Tensor] = []
        if self.surface is not None:
            parts.append(self.surface(surface))
        if self.gap is not None:
            parts.append(self.gap(gap_bucket(gap)))
            angles = torch.stack([(time % period).double() * (2 * math.pi / period) for period in (_DAY, _WEEK)], -1)
            calendar = torch.cat([angles.sin(), angles.cos()], -1).to(parts[-1].dtype)
            parts.append(calendar * time_known[..., None])
        return torch.cat(parts, -1) if parts else None
