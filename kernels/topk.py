"""Top-k along rows, in plain torch.

Suffixes: Q = queries, C = candidates of a query, K = kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["largest", "topk_smaller_id"]

_LOW_32 = 0xFFFFFFFF
_EMPTY = torch.iinfo(torch.int64).min
_GROUP = 16
"""Candidates per group in :func:`largest`; 8 to 16 measured alike for 65,536 to 262,144 candidates and k = 500."""


def largest(score_QC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest scores of each row in any order; which of equal scores are kept is not specified.

    Long rows are first cut down to the ``k`` groups with the highest peaks, which hold the ``k`` largest: a group that
    is left out has ``k`` other groups at or above its peak.

    Args:
        score_QC: [Q, C] floats without NaN.
        k: at most C.

    Returns:
        [Q, k] scores and [Q, k] int64 columns.
    """
    num_queries, width = score_QC.shape
    groups = width // _GROUP
    if groups <= 2 * k:
        return score_QC.topk(k, dim=1, sorted=False)
    whole = groups * _GROUP
    # A group is every groups-th column: the maximum then runs over rows of adjacent floats.
    peak_QG = score_QC[:, :whole].unflatten(1, (_GROUP, groups)).amax(1)
    group_QK = peak_QG.topk(k, dim=1, sorted=False).indices
    step_W1 = torch.arange(_GROUP, device=score_QC.device).unsqueeze(1) * groups
    column_QC = (group_QK.unsqueeze(1) + step_W1).flatten(1)
    if whole < width:
        rest = torch.arange(whole, width, device=score_QC.device).expand(num_queries, -1)
        column_QC = torch.cat([column_QC, rest], dim=1)
    best_QK, place_QK = score_QC.gather(1, column_QC).topk(k, dim=1, sorted=False)
    return best_QK, column_QC.gather(1, place_QK)


def topk_smaller_id(score_QC: Tensor, id_QC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of each row, best first; equal scores go to the smaller id.

    Score and id are packed into one integer that sorts as (score, −id), so that no tie is left to ``torch.topk``.

    Args:
        score_QC: [Q, C] float32 without NaN; −inf = not a candidate.
        id_QC: [Q, C] int64 below 2^32; negative = not a candidate.
        k: may exceed C.

    Returns:
        [Q, k] float32 scores and [Q, k] int64 ids; unfilled places are (−inf, −1).
    """
    bits_QC = (score_QC + 0.0).contiguous().view(torch.int32)  # + 0.0 turns -0.0 into 0.0: they are equal
    rising_QC = bits_QC ^ ((bits_QC >> 31) & 0x7FFFFFFF)
    key_QC = (rising_QC.to(torch.int64) << 32) | (_LOW_32 - id_QC)
    key_QC.masked_fill_((id_QC < 0) | (score_QC == -torch.inf), _EMPTY)
    key_QK = key_QC.topk(min(k, key_QC.shape[1]), dim=1).values
    if key_QK.shape[1] < k:
        key_QK = torch.nn.functional.pad(key_QK, (0, k - key_QK.shape[1]), value=_EMPTY)
    rising_QK = (key_QK >> 32).to(torch.int32)
    best_QK = (rising_QK ^ ((rising_QK >> 31) & 0x7FFFFFFF)).view(torch.float32)
    empty_QK = key_QK == _EMPTY
    return best_QK.masked_fill(empty_QK, -torch.inf), (_LOW_32 - (key_QK & _LOW_32)).masked_fill(empty_QK, -1)
