"""Assignments that use every code about equally often: by capacity, or by Sinkhorn's algorithm.

Suffixes: N = rows, D = entries of a row, K = centroids.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.tokenizers.kmeans import centroid_means, distances, nearest
from recsys.tokenizers.protocol import Codes, Floats

__all__ = [
    "BALANCES",
    "Balance",
    "balanced_codes",
    "balanced_means",
    "capacity_codes",
    "sinkhorn_codes",
    "sinkhorn_log_plan",
]

Balance = Literal["capacity", "sinkhorn", "none"]
BALANCES = ("capacity", "sinkhorn", "none")
_PLAN_ENTRIES = 2**24
_SHUFFLE_SEED = 0
_PRODUCT_ROUNDS = 24
_LARGEST_SCALE = 1e12  # entries that float32 rounds to 0 stay below 1e-14 under two such scales


class _Queue:
    """Rows that want one centroid: who fills it, and when in the order of (distance, row)."""

    def __init__(self, row_N: NDArray[np.int64], squared_N: Floats) -> None:
        self.row_N = row_N
        self.squared_N = squared_N

    def add(self, row_N: NDArray[np.int64], squared_N: Floats) -> None:
        self.row_N = np.concatenate([self.row_N, row_N])
        self.squared_N = np.concatenate([self.squared_N, squared_N])

    def filled_at(self, places: int) -> tuple[float, int]:
        """(distance, row) of the one who takes the last place; infinite where there are too few."""
        if len(self.row_N) < places:
            return math.inf, 0
        last = np.partition(self.squared_N, places - 1)[places - 1]
        equal = np.sort(self.row_N[self.squared_N == last])
        return float(last), int(equal[places - 1 - np.count_nonzero(self.squared_N < last)])

    def split(self, places: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that get a place, and the others."""
        order = np.lexsort((self.row_N, self.squared_N))
        return self.row_N[order[:places]], self.row_N[order[places:]]


def capacity_codes(rows_ND: Floats, centroids_KD: Floats) -> Codes:
    """Give every centroid ⌊N/K⌋ rows, and N mod K of them one more.

    The greedy assignment over all pairs in the order of (distance, row, centroid): a pair is taken if its row is
    still without a centroid and its centroid has a place. So a row misses a centroid only to rows nearer to it. The
    balanced k-means of OneRec (arXiv 2502.18965) lets centroid after centroid pick instead, the last of them from
    what is left. Found without sorting all pairs: until the first centroid is full every row gets its nearest, so
    each round closes the centroid that fills first and sends those behind on to their next. That is at most K rounds.
    A million rows of very uneven lengths, D = 64 and K = 256, are each sent on 18 times and take 28 s on one core.

    Args:
        rows_ND: [N, D] float32, N ≥ K.
        centroids_KD: [K, D] float32.

    Returns:
        [N] int32.
    """
    num, num_codes = len(rows_ND), len(centroids_KD)
    if num < num_codes:
        raise ValueError(f"{num} rows cannot fill {num_codes} codes; give at most {num} codes")
    places, spare = divmod(num, num_codes)
    codes_N, squared_N = nearest(rows_ND, centroids_KD, settle=False)
    order = np.argsort(codes_N, kind="stable")
    bounds = np.cumsum(np.bincount(codes_N, minlength=num_codes))[:-1]
    queues = [_Queue(rows, squared_N[rows]) for rows in np.split(order, bounds)]
    open_K = np.ones(num_codes, dtype=bool)
    filled = [queue.filled_at(places + (spare > 0)) for queue in queues]
    while True:
        first = min(np.flatnonzero(open_K), key=lambda code: filled[code])
        kept, moved = queues[first].split(places + (spare > 0))
        codes_N[kept] = first
        open_K[first] = False
        # Keys of centroids that nobody joins stay those of one place more once the last spare one is gone. That closes
        # them late, but whoever they then send on is farther than every row that closed a centroid before.
        spare = max(spare - 1, 0)
        if not open_K.any():
            return codes_N
        if len(moved):
            code_of_open = np.flatnonzero(open_K)
            next_N, next_squared_N = nearest(rows_ND[moved], centroids_KD[open_K], settle=False)
            order = np.argsort(next_N, kind="stable")
            bounds = np.cumsum(np.bincount(next_N, minlength=len(code_of_open)))[:-1]
            for code, part in zip(code_of_open.tolist(), np.split(order, bounds), strict=True):
                if len(part):
                    queues[code].add(moved[part], next_squared_N[part])
                    filled[code] = queues[code].filled_at(places + (spare > 0))


def sinkhorn_log_plan(
    distance_NK: Tensor, *, epsilon: float = 0.003, num_rounds: int = 100, tolerance: float = 1e-3
) -> Tensor:
    """Soft assignment with equal marginals, as RepCONC has it (arXiv 2110.05789), in the log domain and float32.

    The distances are centred in their range and divided by half of it; then the columns of exp(−distance/ε) are
    scaled to sums of 1/K and the rows to sums of 1/N in turn.

    Args:
        distance_NK: [N, K] squared distances.
        epsilon: ε; smaller is nearer to a hard assignment and slower to balance.
        num_rounds: at most so many pairs of scalings.
        tolerance: stops once every column's sum is within this share of 1/K.

    Returns:
        [N, K] float32 logarithms. Rows sum to 1/N; columns to 1/K as far as the rounds went.
    """
    low, high = distance_NK.min().float(), distance_NK.max().float()
    half = (high - low) / 2
    cost_NK = (distance_NK.float() - (low + half)) / half.clamp(min=1e-30) / -epsilon
    num, num_codes = cost_NK.shape
    row_N = torch.zeros(num)
    column_K = torch.zeros(num_codes)
    rounds = 0
    while True:
        # Potentials instead of a plan that is scaled in place: rounding errors do not pile up.
        column_K = -torch.logsumexp(cost_NK + row_N[:, None], 0) - math.log(num_codes)
        row_N = -torch.logsumexp(cost_NK + column_K, 1) - math.log(num)
        plan_NK = torch.exp(cost_NK + row_N[:, None] + column_K)
        rounds += 1
        worst = float((plan_NK.sum(0) * num_codes).sub(1).abs().max())
        if worst <= tolerance or rounds >= num_rounds:
            return cost_NK + row_N[:, None] + column_K
        # From a plan whose rows are right some rounds are products of it with vectors, 20 times cheaper than
        # logarithms of sums; then the potentials take them up (Schmitzer, arXiv 1610.06519).
        scale_N = torch.ones(num)
        for _ in range(min(_PRODUCT_ROUNDS, num_rounds - rounds - 1)):
            scale_K = 1 / (num_codes * (plan_NK.T @ scale_N))
            next_N = 1 / (num * (plan_NK @ scale_K))
            if max(float(scale_K.max()), float(next_N.max())) > _LARGEST_SCALE:
                break
            scale_N = next_N
            rounds += 1
        row_N = row_N + scale_N.log()


def sinkhorn_codes(rows_ND: Floats, centroids_KD: Floats, *, epsilon: float = 0.003, num_rounds: int = 100) -> Codes:
    """[N] the likeliest centroid of every row in :func:`sinkhorn_log_plan`: nearly equal shares, none guaranteed.

    Balanced inside parts of some 2^24 / K rows in a fixed shuffled order, as RepCONC balances mini-batches, so that
    the plan's memory is bounded.
    """
    num, num_codes = len(rows_ND), len(centroids_KD)
    codes_N = np.empty(num, np.int32)
    for part in _parts(num, num_codes):
        distance = torch.from_numpy(distances(rows_ND[part], centroids_KD))
        codes_N[part] = sinkhorn_log_plan(distance, epsilon=epsilon, num_rounds=num_rounds).argmax(1).numpy()
    return codes_N


def balanced_codes(rows_ND: Floats, centroids_KD: Floats, balance: Balance) -> Codes:
    """[N] int32 codes under a balance; "none" = the nearest centroid."""
    if balance == "capacity":
        return capacity_codes(rows_ND, centroids_KD)
    if balance == "sinkhorn":
        return sinkhorn_codes(rows_ND, centroids_KD)
    return nearest(rows_ND, centroids_KD)[0]


def balanced_means(rows_ND: Floats, centroids_KD: Floats, balance: Balance, num_steps: int) -> Floats:
    """[K, D] centroids after some rounds of balanced assignment and new means; unchanged for "none".

    Sinkhorn's algorithm balances part after part. All parts are drawn alike, so that the means are those of the first:
    of 200,000 rows and 256 codes a third, at a third of the time.
    """
    if balance == "sinkhorn":
        rows_ND = rows_ND[np.sort(_parts(len(rows_ND), len(centroids_KD))[0])]
    if balance != "none":
        for _ in range(num_steps):
            centroids_KD, _ = centroid_means(rows_ND, balanced_codes(rows_ND, centroids_KD, balance), centroids_KD)
    return centroids_KD


def _parts(num_rows: int, num_codes: int) -> list[NDArray[np.int64]]:
    """Rows in a fixed shuffled order, in parts whose plan is small enough."""
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(num_rows)
    return np.array_split(order, max(1, -(-num_rows * num_codes // _PLAN_ENTRIES)))
