"""Checks of vectors and codes before anything is fitted on them or made of them.

Suffixes: N = rows, V = entries of a row, L = levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from recsys.tokenizers.protocol import Codes, Floats

__all__ = [
    "blocks_of",
    "check_sizes",
    "checked_codes",
    "checked_fit_rows",
    "checked_rows",
    "count_distinct",
    "mean_and_scale",
    "require_distinct",
]

_ENTRIES_AT_ONCE = 2**24
_SMALLEST, _LARGEST = 1e-12, 1e12  # squares of such entries, and sums of them, stay inside float32


def blocks_of(num_rows: int, width: int) -> list[slice]:
    """Slices of rows that hold some 2^24 entries each."""
    step = max(1, _ENTRIES_AT_ONCE // max(width, 1))
    return [slice(low, min(low + step, num_rows)) for low in range(0, num_rows, step)]


def checked_rows(vectors_NV: ArrayLike, *, name: str, width: int | None = None) -> Floats:
    """[N, V] contiguous float32; float32 input is not copied.

    Raises:
        ValueError: not two axes, another width than ``width``, NaN or infinity; begins with ``name``.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is named below
        rows_NV = np.ascontiguousarray(vectors_NV, dtype=np.float32)
    if rows_NV.ndim != 2 or rows_NV.shape[1] == 0:
        raise ValueError(f"{name}: vectors must be [items, entries], got shape {rows_NV.shape}; give one row per item")
    if width is not None and rows_NV.shape[1] != width:
        raise ValueError(
            f"{name}: vectors have {rows_NV.shape[1]} entries, the tokenizer was fitted on {width}; "
            "encode vectors of the same kind or fit again"
        )
    for block in blocks_of(*rows_NV.shape):
        finite_N = np.isfinite(rows_NV[block]).all(axis=1)
        if not finite_N.all():
            row = block.start + int(np.argmin(finite_N))
            raise ValueError(f"{name}: row {row} holds NaN or infinity; drop the item or give it a zero row")
    return rows_NV


def checked_fit_rows(vectors_IV: ArrayLike, *, name: str) -> Floats:
    """Rows to fit on: as :func:`checked_rows`, and not all equal, and of a scale whose squares float32 holds.

    Raises:
        ValueError: what is wrong with the vectors, and what to do.
    """
    rows_IV = checked_rows(vectors_IV, name=name)
    if len(rows_IV) == 0:
        raise ValueError(f"{name}: there are 0 vectors to fit on; give the vectors of a catalogue")
    blocks = blocks_of(*rows_IV.shape)
    if all((rows_IV[block] == rows_IV[0]).all() for block in blocks):
        raise ValueError(f"{name}: all {len(rows_IV)} vectors are equal; give vectors that tell items apart")
    largest = max(float(rows_IV.max()), -float(rows_IV.min()))
    if not _SMALLEST < largest < _LARGEST:
        raise ValueError(
            f"{name}: the largest entry is {largest:.3g}, and its square leaves float32; scale the vectors first"
        )
    return rows_IV


def mean_and_scale(rows_NV: Floats) -> tuple[Floats, float]:
    """[V] mean row, and the factor that gives centred entries a mean square of 1; in float64, block by block."""
    mean_V = rows_NV.mean(axis=0, dtype=np.float64)
    blocks = blocks_of(*rows_NV.shape)
    spread = sum(float(np.square(rows_NV[block].astype(np.float64) - mean_V).sum()) for block in blocks)
    return mean_V.astype(np.float32), (rows_NV.size / spread) ** 0.5


def count_distinct(rows_NV: Floats, *, enough: int) -> int:
    """Different rows; counting stops once there are ``enough``, so the result can be too small above that."""
    count, rows = 0, 2 * enough
    while True:
        part_NV = rows_NV[:rows] + np.float32(0.0)  # -0.0 becomes 0.0: the rows are compared as bytes
        count = len(np.unique(part_NV.view(np.dtype((np.void, part_NV.itemsize * part_NV.shape[1])))))
        if count >= enough or rows >= len(rows_NV):
            return count
        rows *= 4


def require_distinct(rows_NV: Floats, num_codes: int, *, name: str, where: str) -> None:
    """Refuse to make more codes than there are different rows.

    Raises:
        ValueError: names the method, the place, both figures and the remedy.
    """
    count = count_distinct(rows_NV, enough=num_codes)
    if count < num_codes:
        raise ValueError(
            f"{name}: {where} has {count} distinct vectors for {num_codes} codes; "
            f"give codebooks of at most {count} codes, or fewer levels"
        )


def check_sizes(sizes: tuple[int, ...] | None, owner: str) -> None:
    """ValueError unless ``sizes`` is None or names at least one level, each of at least two codes."""
    if sizes is None:
        return
    if not sizes or any(not isinstance(size, int) or size < 2 for size in sizes):
        raise ValueError(f"{owner}.codebook_sizes must name at least 2 codes for each level, got {sizes!r}")


def checked_codes(codes_NL: ArrayLike, sizes: tuple[int, ...], *, name: str) -> Codes:
    """[N, L] contiguous int32 in range.

    Raises:
        ValueError: another type or shape, or the place of the first code that is out of range.
    """
    given = np.asarray(codes_NL)
    if given.dtype.kind not in "iu":
        raise ValueError(f"{name}: codes must be integers, got {given.dtype}; give what encode() returned")
    if given.ndim != 2 or given.shape[1] != len(sizes):
        raise ValueError(f"{name}: codes have shape {given.shape}, not [items, {len(sizes)}]; give one row per item")
    wrong_NL = (given < 0) | (given >= np.asarray(sizes))
    if wrong_NL.any():
        row, level = (int(at) for at in np.argwhere(wrong_NL)[0])
        raise ValueError(
            f"{name}: codes[{row}, {level}] = {given[row, level]} is outside [0, {sizes[level]}); "
            "the codes belong to another tokenizer"
        )
    return np.ascontiguousarray(given, dtype=np.int32)
