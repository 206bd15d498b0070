"""The last positive items of histories, which the memory terms read.

Suffixes: B = users, M = places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recsys.events import History

__all__ = ["recent_positives"]


def recent_positives(histories: Sequence[History], positive_mask: int, m: int) -> Tensor:
    """[B, m] int64 items of each history's last positive events, newest first, -1 padded; unknown items are skipped."""
    out = np.full((len(histories), m), -1, dtype=np.int64)
    for row, history in enumerate(histories):
        items = history.item[(history.yes & positive_mask != 0) & (history.item >= 0)][::-1][:m]
        out[row, : len(items)] = items
    return torch.from_numpy(out)
