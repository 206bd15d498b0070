"""How much of a chunk must be computed again when it stands in another context: Cache-Craft (arXiv 2502.15734).

A chunk's keys and values were computed behind some earlier chunks and are wanted behind others. What its tokens took
from the earlier chunks (inter attention) against what they took from their own chunk (intra attention) says how much
the context shaped them; how much of that attention went to chunks that are there again, in the same order, says how
much of it still holds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

__all__ = ["context_impact", "order_distance", "prefix_overlap", "recompute_share"]

Tokens = tuple[int, ...]


def context_impact(inter: Sequence[float], lengths: Sequence[int], intra: float, length: int) -> float:
    """CCI of the paper: σ(a / b), from .5 (the context did nothing) to 1.

    Args:
        inter: attention of all tokens of the chunk, summed, to each earlier chunk.
        lengths: tokens of each earlier chunk.
        intra: attention of all tokens of the chunk, summed, to the chunk itself.
        length: tokens of the chunk.

    >>> context_impact([], [], 4.0, 4)
    0.5
    >>> a, b = 1.0 / (2 * 4) + 2.0 / (4 * 4), 8.0 / (4 * 4)
    >>> context_impact([1.0, 2.0], [2, 4], 8.0, 4) == 1 / (1 + math.exp(-a / b))
    True
    """
    a = sum(mass / (other * length) for mass, other in zip(inter, lengths, strict=True))
    b = intra / (length * length)
    return 1 / (1 + math.exp(-a / b)) if b > 0 else 1.0


def prefix_overlap(inter: Sequence[float], old: Sequence[Tokens], new: Sequence[Tokens]) -> float:
    """β' of the paper: the share of inter attention whose chunks are there again, times one minus
    :func:`order_distance`.

    Args:
        inter: attention to each chunk of ``old``.
        old: chunks before it when it was computed, first to last.
        new: chunks before it now.
    Returns:
        0 to 1; 0 for a chunk that was computed behind no chunk and stands behind some now, since nothing of its new
        context is known to it; 1 if both are empty.

    >>> prefix_overlap([3.0, 1.0], [(1,), (2,)], [(1,), (9,)])
    0.75
    >>> prefix_overlap([3.0, 1.0], [(1,), (2,)], [(2,), (1,)])
    0.0
    """
    if not old:
        return 0.0 if new else 1.0
    there = set(_numbered(new))
    kept = [mass for mass, chunk in zip(inter, _numbered(old), strict=True) if chunk in there]
    total = sum(inter)
    share = sum(kept) / total if total > 0 else len(kept) / len(old)
    return share * (1 - order_distance(old, new))


def order_distance(old: Sequence[Tokens], new: Sequence[Tokens]) -> float:
    """γ of the paper: Kendall's distance between the orders of the chunks that both have, 0 to 1.

    >>> order_distance([(1,), (2,), (3,)], [(2,), (1,), (3,)]) == 1 / 3
    True
    """
    place = {chunk: at for at, chunk in enumerate(_numbered(new))}
    places = [place[chunk] for chunk in _numbered(old) if chunk in place]
    pairs = list(combinations(places, 2))
    return sum(left > right for left, right in pairs) / len(pairs) if pairs else 0.0


def recompute_share(alpha: float, impact: float, overlap: float) -> float:
    """CFO of the paper, α·CCI·(1 − β'), at most 1. An infinite ``alpha`` always gives 1.

    >>> recompute_share(1.0, 0.6, 0.5), recompute_share(9.0, 0.6, 0.5), recompute_share(math.inf, 0.6, 1.0)
    (0.3, 1.0, 1.0)
    """
    return 1.0 if math.isinf(alpha) else min(1.0, alpha * impact * (1 - overlap))


def _numbered(chunks: Sequence[Tokens]) -> list[tuple[Tokens, int]]:
    """The n-th time that a chunk comes is not its first time."""
    seen: defaultdict[Tokens, int] = defaultdict(int)
    numbered = []
    for chunk in chunks:
        numbered.append((chunk, seen[chunk]))
        seen[chunk] += 1
    return numbered
