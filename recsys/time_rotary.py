"""Clock times as rotations of queries and keys (rotary embeddings, arXiv 2104.09864, with t in the place of position).

A key is turned by angles of its own time, so it may be cached; a score then depends on t_i − t_j alone, modulo each
period. Angles come from (t mod period) in float64, since float32 cannot hold a timestamp to the second.

Suffixes: H = heads, P = turned pairs of a head, K = periods.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Turn", "rotate", "time_turn"]

_HOUR, _DAY = 3_600, 86_400
_PERIODS = (_DAY, 7 * _DAY, 30 * _DAY, _HOUR, 365 * _DAY)
Turn = tuple[Tensor, Tensor]
"""Cosines and sines [..., H, P]."""


def time_turn(time: Tensor, time_known: Tensor, num_heads: int, head_dim: int) -> Turn:
    """Angles of rows of any shape; a row whose time is not known is not turned.

    A quarter of ``head_dim`` pairs turn, so that half of every head still compares contents at any distance in time;
    the periods go round the pairs of all heads.
    """
    pairs = max(1, head_dim // 4)
    periods_K = torch.tensor(_PERIODS, dtype=torch.int64, device=time.device)
    angle = (time[..., None] % periods_K).double() * (2 * math.pi / periods_K.double()) * time_known[..., None]
    period_HP = torch.arange(num_heads * pairs, device=time.device).remainder(len(_PERIODS)).view(num_heads, pairs)
    return angle.cos().float()[..., period_HP], angle.sin().float()[..., period_HP]


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """[..., H, head_dim] with its first P elements and the P after them turned as pairs."""
    cos, sin = (part.to(x.dtype) for part in turn)
    pairs = cos.shape[-1]
    first, second, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)
