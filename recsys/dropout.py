"""Dropout that costs little on a CPU, where drawing one random number per element is a fifth of a training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout"]

_LEVELS = 256


class Dropout(nn.Module):
    """Zeroes each element with probability ``p`` in training and divides the others by 1 − p (arXiv 1207.0580).

    On a CPU eight elements share one 64-bit draw, a byte each, so that ``p`` is rounded to the nearest 1/256 (and the
    division uses the rounded one); on other devices torch's own dropout runs.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Tensor of any shape; itself outside of training."""
        if not self.training or not self.p:
            return x
        dropped = round(self.p * _LEVELS)
        if x.device.type != "cpu" or not 0 < dropped < _LEVELS:
            return F.dropout(x, self.p)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"
