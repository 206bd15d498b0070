"""How well codes stand for vectors: shared leaves, unused codes, lost distances.

Suffixes: I = items, V = entries of a vector, L = levels, S = sampled items, K = neighbours.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.tokenizers.protocol import Codes, Floats, Health
from recsys.tokenizers.vector_checks import blocks_of

__all__ = ["CodeUse", "code_health", "code_use"]

NUM_NEIGHBOURS = 10
MAX_SAMPLE = 2000


def _neighbours(rows_SV: Floats, count: int) -> NDArray[np.int64]:
    """[S, K] the others with the largest cosine; equal ones by row."""
    wide_SV = rows_SV.astype(np.float64)
    unit_SV = wide_SV / np.maximum(np.linalg.norm(wide_SV, axis=1, keepdims=True), 1e-30)
    # Rounded, so that copies of one row are equally near and not ordered by the last bit of a sum.
    cosine_SS = np.round(unit_SV @ unit_SV.T, 10)
    np.fill_diagonal(cosine_SS, -np.inf)
    return np.argsort(-cosine_SS, axis=1, kind="stable")[:, :count]


def _neighbours_kept(vectors_SV: Floats, decoded_SV: Floats) -> float:
    count = min(NUM_NEIGHBOURS, len(vectors_SV) - 1)
    if count < 1:
        return 1.0
    before_SK, after_SK = _neighbours(vectors_SV, count), _neighbours(decoded_SV, count)
    same = (before_SK[:, :, None] == after_SK[:, None, :]).any(2)
    return float(same.mean())


@dataclass(frozen=True, slots=True)
class CodeUse:
    """What of :class:`~recsys.tokenizers.protocol.Health` the codes alone say."""

    num_items: int
    num_leaves: int
    num_collisions: int
    largest_leaf: int
    dead_codes: tuple[int, ...]
    entropy_bits: tuple[float, ...]
    max_bits: tuple[float, ...]


def code_use(codes_IL: Codes, sizes: tuple[int, ...]) -> CodeUse:
    """Shared leaves and unused codes of one catalogue.

    Args:
        codes_IL: [I, L] int32, in range, I ≥ 1.
        sizes: codes per level.
    """
    num = len(codes_IL)
    _, count_F = np.unique(codes_IL, axis=0, return_counts=True)
    dead, bits = [], []
    for level, size in enumerate(sizes):
        used = np.bincount(codes_IL[:, level], minlength=size)
        share = used[used > 0] / num
        dead.append(int(size - len(share)))
        bits.append(max(0.0, float(-(share * np.log2(share)).sum())))
    return CodeUse(
        num_items=num,
        num_leaves=len(count_F),
        num_collisions=int(count_F[count_F > 1].sum()),
        largest_leaf=int(count_F.max()),
        dead_codes=tuple(dead),
        entropy_bits=tuple(bits),
        max_bits=tuple(math.log2(size) for size in sizes),
    )


def code_health(vectors_IV: Floats, codes_IL: Codes, decoded_IV: Floats, sizes: tuple[int, ...]) -> Health:
    """Figures of one catalogue.

    Args:
        vectors_IV: [I, V] float32, I ≥ 1.
        codes_IL: [I, L] int32, in range.
        decoded_IV: [I, V] float32, the codes' reconstructions.
        sizes: codes per level.

    Returns:
        The figures. Neighbours are those among at most 2,000 items, the same ones every time for a catalogue of one
        size; where equal cosines compete for the last places, the earlier item counts as nearer.
    """
    num = len(vectors_IV)
    used = code_use(codes_IL, sizes)
    mean_V = vectors_IV.mean(axis=0, dtype=np.float64)
    lost = spread = 0.0
    for block in blocks_of(*vectors_IV.shape):
        rows = vectors_IV[block].astype(np.float64)
        lost += float(np.square(rows - decoded_IV[block]).sum())
        spread += float(np.square(rows - mean_V).sum())
    sample_S = np.sort(np.random.default_rng(0).permutation(num)[:MAX_SAMPLE])
    return Health(
        **asdict(used),
        relative_error=lost / spread if spread > 0 else float(lost > 0),
        neighbours_kept=_neighbours_kept(vectors_IV[sample_S], decoded_IV[sample_S]),
    )
