"""Residual codebooks: each level takes the nearest vector from what the levels before it left over.

Suffixes: N = rows, D = entries of a row, L = levels, K = codes of one level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.tokenizers.kmeans import nearest
from recsys.tokenizers.protocol import Codes, Floats

__all__ = ["default_sizes", "renumbered_codebook", "residual_codes", "residual_sum"]


def default_sizes(num_items: int, *, num_levels: int = 3, max_size: int = 256) -> tuple[int, ...]:
    """Codebook sizes for a catalogue: every level the largest power of two that is at most ``max_size`` and at most a
    quarter of the items, but at least 2. So a code of a level stands for four items or more on average.

    >>> default_sizes(12_101), default_sizes(1000), default_sizes(30), default_sizes(3)
    ((256, 256, 256), (128, 128, 128), (4, 4, 4), (2, 2, 2))
    """
    size = 2
    while 2 * size <= min(max_size, num_items // 4):
        size *= 2
    return (size,) * num_levels


def residual_codes(rows_ND: Floats, codebooks: Sequence[Floats]) -> Codes:
    """[N, L] codes: the nearest of each level's [K, D] codebook, level after level."""
    codes_NL = np.empty((len(rows_ND), len(codebooks)), np.int32)
    rest_ND = rows_ND
    for level, codebook_KD in enumerate(codebooks):
        codes_NL[:, level], _ = nearest(rest_ND, codebook_KD)
        rest_ND = rest_ND - codebook_KD[codes_NL[:, level]]
    return codes_NL


def residual_sum(codes_NL: Codes, codebooks: Sequence[Floats]) -> Floats:
    """[N, D] sum of the codes' vectors, in the order of the levels."""
    total_ND = codebooks[0][codes_NL[:, 0]]
    for level, codebook_KD in enumerate(codebooks[1:], start=1):
        total_ND = total_ND + codebook_KD[codes_NL[:, level]]
    return total_ND


def renumbered_codebook(codebook_KD: Floats, number_K: NDArray[np.int64]) -> Floats:
    """[K, D] the codebook whose row ``number_K[c]`` is row c of the old one."""
    moved_KD = np.empty_like(codebook_KD)
    moved_KD[number_K] = codebook_KD
    return moved_KD
