"""Which tokens see which where parts of a text stand beside each other and not one after the other.

A text is a row of segments. Those of a group begin at the same position and see what stood before the group and
themselves, never each other; what comes after the group begins where its longest segment ends and sees them all
(set-based prompting, arXiv 2406.06581). Candidates of a ranking request stand in the same relation to a history:
:mod:`recsys.shared_attention` computes what this mask describes for segments of one row each, in two
parts and without ever building it; a test holds both together.

Suffixes: N = tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SetLayout", "set_layout"]


@dataclass(frozen=True, slots=True)
class SetLayout:
    """Where the tokens of a text stand and what they see."""

    position_N: Tensor
    """[N] int64."""
    visible_NN: Tensor
    """[N, N] bool: row sees column."""


def set_layout(parts: Sequence[Sequence[int]]) -> SetLayout:
    """The layout of a text of groups.

    Args:
        parts: tokens of the segments of each group, in the order in which their tokens stand; a group of one segment
            is plain text.

    >>> layout = set_layout([[2], [1, 2], [1]])  # two tokens, two segments beside each other, one more token
    >>> layout.position_N.tolist()
    [0, 1, 2, 2, 3, 4]
    >>> layout.visible_NN[4].int().tolist()  # the second token of the second segment
    [1, 1, 0, 1, 1, 0]
    """
    if any(length < 0 for group in parts for length in group):
        raise ValueError("a segment has no negative number of tokens")
    positions: list[int] = []
    group_of: list[int] = []
    segment_of: list[int] = []
    start = segment = 0
    for number, group in enumerate(parts):
        for length in group:
            positions += range(start, start + length)
            group_of += [number] * length
            segment_of += [segment] * length
            segment += 1
        start += max(group, default=0)
    position_N = torch.tensor(positions, dtype=torch.int64)
    group_N, segment_N = torch.tensor(group_of), torch.tensor(segment_of)
    earlier_NN = group_N[None] < group_N[:, None]
    own_NN = (segment_N[None] == segment_N[:, None]) & (position_N[None] <= position_N[:, None])
    return SetLayout(position_N, earlier_NN | own_NN)
