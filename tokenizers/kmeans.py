"""k-means: who is nearest, k-means++ and Lloyd's steps, in blocks of rows.

No [rows, centroids] matrix is ever whole: 10 million rows need memory for the rows and for one block.
Suffixes: N = rows, D = entries of a row, K = centroids, B = rows of one block, P = pairs that are compared closely.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.tokenizers.protocol import Codes, Floats
from recsys.tokenizers.vector_checks import blocks_of

__all__ = ["centroid_means", "distances", "kmeans", "kmeans_plus_plus", "nearest"]

_SCORES_AT_ONCE = 2**22
_PAIR_ENTRIES_AT_ONCE = 2**22
_ROWS_PER_SEED = 64  # rows per centroid that k-means++ looks at; Lloyd's steps see all
_SMALL_CHANGE = 1e-4  # of the squared error, after which Lloyd's steps gain nothing visible


def _tensor(array: Floats) -> Tensor:
    """The array's memory as a tensor; a copy of what is read-only, which torch warns about."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def distances(rows_ND: Floats, centroids_KD: Floats) -> Floats:
    """[N, K] squared distances, not below 0; for blocks, as the result is whole."""
    rows, centroids = _tensor(rows_ND), _tensor(centroids_KD)
    squared = torch.addmm(centroids.square().sum(1), rows, centroids.T, alpha=-2) + rows.square().sum(1, keepdim=True)
    return squared.clamp_(min=0).numpy()


def _settle(rows_BD: Tensor, centroids_KD: Tensor, near_BK: Tensor) -> Tensor:
    """[B] nearest among near ones, in float64 and by differences; of equal ones the first."""
    exact_BK = torch.full(near_BK.shape, torch.inf, dtype=torch.float64)
    row_P, centroid_P = near_BK.nonzero(as_tuple=True)
    step = max(1, _PAIR_ENTRIES_AT_ONCE // rows_BD.shape[1])
    for low in range(0, len(row_P), step):
        row, centroid = row_P[low : low + step], centroid_P[low : low + step]
        exact_BK[row, centroid] = (rows_BD[row].double() - centroids_KD[centroid].double()).square().sum(1)
    return exact_BK.argmin(1)


def nearest(rows_ND: Floats, centroids_KD: Floats, *, settle: bool = True) -> tuple[Codes, Floats]:
    """Nearest centroid of every row, and the squared distance to it.

    The sums of a matrix product depend on the shape of the batch. So with ``settle`` every centroid within the
    rounding error of the best is compared again in float64, row by row: the answer for a row is then a function of
    that row alone, and of equal distances the smaller code wins.

    Args:
        rows_ND: [N, D] float32.
        centroids_KD: [K, D] float32.
        settle: off inside fits, where a near tie may fall either way.

    Returns:
        [N] int32 codes and [N] float32 squared distances (those from the product, to its rounding).
    """
    centroids = _tensor(centroids_KD)
    num, width = rows_ND.shape
    norm_K = centroids.square().sum(1)
    longest = float(norm_K.max().sqrt())
    # Twice the worst case of a float32 sum of `width` products, at both ends of the comparison.
    rounding = 4 * (width + 4) * torch.finfo(torch.float32).eps
    codes_N, squared_N = np.empty(num, np.int32), np.empty(num, np.float32)
    step = max(1, _SCORES_AT_ONCE // len(centroids_KD))
    for low in range(0, num, step):
        rows_BD = _tensor(rows_ND[low : low + step])
        score_BK = torch.addmm(norm_K, rows_BD, centroids.T, alpha=-2)
        best_B, code_B = score_BK.min(1)
        norm_B = rows_BD.square().sum(1)
        if settle:
            slack_B = rounding * longest * (2 * norm_B.sqrt() + longest)
            near_BK = score_BK <= (best_B + slack_B)[:, None]
            doubtful_B = near_BK.sum(1) > 1
            if bool(doubtful_B.any()):
                code_B[doubtful_B] = _settle(rows_BD[doubtful_B], centroids, near_BK[doubtful_B])
        codes_N[low : low + step] = code_B.numpy()
        squared_N[low : low + step] = (best_B + norm_B).clamp_(min=0).numpy()
    return codes_N, squared_N


def kmeans_plus_plus(rows_ND: Floats, num_centroids: int, rng: np.random.Generator) -> Floats:
    """[K, D] rows drawn far from each other: each with probability in proportion to the squared distance from those
    drawn before (Arthur and Vassilvitskii, SODA 2007).

    Looks at 64 rows per centroid at most. Where fewer different rows than centroids are seen, rows repeat.
    """
    if len(rows_ND) > _ROWS_PER_SEED * num_centroids:
        rows_ND = rows_ND[np.sort(rng.choice(len(rows_ND), _ROWS_PER_SEED * num_centroids, replace=False))]
    chosen = [int(rng.integers(len(rows_ND)))]
    away_N = np.full(len(rows_ND), np.inf, np.float32)
    while len(chosen) < num_centroids:
        away_N = np.minimum(away_N, np.square(rows_ND - rows_ND[chosen[-1]]).sum(1))
        total_N = np.cumsum(away_N, dtype=np.float64)
        if total_N[-1] > 0:
            drawn = int(np.searchsorted(total_N, rng.random() * total_N[-1], side="right"))
            chosen.append(min(drawn, len(rows_ND) - 1))
        else:
            chosen.append(int(rng.integers(len(rows_ND))))
    return np.ascontiguousarray(rows_ND[chosen])


def centroid_means(rows_ND: Floats, codes_N: Codes, before_KD: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """[K, D] mean of the rows of each code, summed in float64, and [K] how many there were.

    A code without rows keeps its place in ``before_KD``.
    """
    num_codes, width = before_KD.shape
    sum_KD = np.zeros((num_codes, width))
    for block in blocks_of(len(rows_ND), width):
        codes = codes_N[block]
        member = scipy.sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), (num_codes, len(codes)))
        sum_KD += member @ rows_ND[block].astype(np.float64)
    count_K = np.bincount(codes_N, minlength=num_codes)
    mean_KD = (sum_KD / np.maximum(count_K, 1)[:, None]).astype(np.float32)
    return np.where(count_K[:, None] > 0, mean_KD, before_KD), count_K


def _far_rows(rows_ND: Floats, squared_N: Floats, wanted: int) -> Floats:
    """At most ``wanted`` different rows, the farthest from their centroids first."""
    many = min(len(rows_ND), 8 * wanted)
    order = np.argpartition(-squared_N, many - 1)[:many]
    order = order[np.lexsort((order, -squared_N[order]))]
    _, first = np.unique(rows_ND[order], axis=0, return_index=True)
    return rows_ND[order[np.sort(first)[:wanted]]]


def kmeans(
    rows_ND: Floats,
    num_centroids: int,
    rng: np.random.Generator,
    *,
    num_steps: int = 25,
    start_KD: Floats | None = None,
) -> Floats:
    """Lloyd's k-means from k-means++.

    Args:
        rows_ND: [N, D] float32; at least ``num_centroids`` different rows, or some centroids end up equal.
        num_centroids: K.
        rng: draws the start.
        num_steps: at most so many; fewer where the squared error changes by less than 1e-4 of itself.
        start_KD: centroids to go on from instead of a draw.

    Returns:
        [K, D] float32. A centroid that loses all its rows moves to a row far from its own centroid.
    """
    centroids_KD = kmeans_plus_plus(rows_ND, num_centroids, rng) if start_KD is None else start_KD
    before = np.inf
    for _ in range(num_steps):
        codes_N, squared_N = nearest(rows_ND, centroids_KD, settle=False)
        centroids_KD, count_K = centroid_means(rows_ND, codes_N, centroids_KD)
        empty_E = np.flatnonzero(count_K == 0)
        if len(empty_E):
            far_ED = _far_rows(rows_ND, squared_N, len(empty_E))
            centroids_KD[empty_E[: len(far_ED)]] = far_ED
        error = float(squared_N.sum(dtype=np.float64))
        if not len(empty_E) and before - error <= _SMALL_CHANGE * error:
            break
        before = error
    return centroids_KD
