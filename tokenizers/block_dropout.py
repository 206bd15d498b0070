"""Modality dropout: training rows of several blocks lose one of them, so that codes can be made without it.

Suffixes: B = rows of a batch, V = entries of a row, M = blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["blank_blocks", "check_blocks"]

_NOTHING = 1e-4  # of entries of about 1: a missing block is the mean, which centring leaves rounding errors of


def check_blocks(block_widths: tuple[int, ...] | None, block_dropout: float, owner: str) -> None:
    """ValueError unless the two settings of a config make sense together."""
    if not 0 <= block_dropout < 1:
        raise ValueError(f"{owner}.block_dropout must be in [0, 1), got {block_dropout!r}")
    if block_widths is not None and (not block_widths or min(block_widths) < 1):
        raise ValueError(f"{owner}.block_widths must be positive, got {block_widths!r}")
    if block_dropout > 0 and (block_widths is None or len(block_widths) < 2):
        raise ValueError(f"{owner}.block_dropout needs block_widths of at least two blocks, got {block_widths!r}")


def blank_blocks(rows_BV: Tensor, block_widths: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """Set one present block of some rows to zero, which is the mean of centred rows.

    Args:
        rows_BV: [B, V] centred rows; entries of about 1; a block of zeros is missing already.
        block_widths: M widths that add up to V.
        share: probability that a row loses a block.
        generator: of the draws, on the CPU.

    Returns:
        [B, V] a copy. A row with fewer than two present blocks loses none, so no row loses all.
    """
    present_BM = torch.stack(
        [(part.abs() > _NOTHING).any(1) for part in rows_BV.split(list(block_widths), dim=1)], dim=1
    )
    draw_BM = torch.rand(present_BM.shape, generator=generator).to(rows_BV.device)
    blank_B = draw_BM.masked_fill(~present_BM, -1.0).argmax(1)
    hit_B = torch.rand(len(rows_BV), generator=generator).to(rows_BV.device) < share
    hit_B &= present_BM.sum(1) >= 2
    block_V = torch.repeat_interleave(torch.tensor(block_widths)).to(rows_BV.device)
    return rows_BV.masked_fill(hit_B[:, None] & (block_V[None, :] == blank_B[:, None]), 0.0)
