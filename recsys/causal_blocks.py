"""Causal attention of whole histories on a CPU in blocks of rows, where no gradient is wanted.

A block reads the columns up to its last row only, and its scores stay in the cache of a core. The bias of time
differences needs no lookup per pair: along a row gaps only fall, so its biases are one number per bucket, repeated.

Suffixes: B = sequences, L = rows of a sequence, H = heads, D = head width, E = runs of a row, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recsys.time_features import GAP_BOUNDARIES

__all__ = ["RunBias", "TimeRuns", "attend_blocks", "time_runs"]

_BOUNDS = np.array(GAP_BOUNDARIES, dtype=np.int64)
_ROWS = 128
"""Rows of a block; 64 to 256 measured alike for 1024 rows."""
_SCORES = 2**17
"""Scores of a block: with their biases 1 MiB, which the cache of a core holds. Twice as many took 1.4 times as
long for 16 histories of 256 rows, and 2.6 times for 16 of 128."""


@dataclass(frozen=True, slots=True)
class TimeRuns:
    """How many rows before each row lie in which buckets of t_i − t_j."""

    count_BLE: NDArray[np.intp]
    """Rows of each run. Of the last one, of bucket 0, which reaches to the row and beyond: minus those before it."""

    def bias(self, table_KH: Tensor) -> RunBias:
        """With the numbers of one layer's table, [buckets, H]."""
        table = table_KH.detach().float().cpu().numpy()
        return RunBias(self, np.ascontiguousarray(table[self.count_BLE.shape[2] - 1 :: -1].T))


@dataclass(frozen=True, slots=True)
class RunBias:
    """A bias of t_i − t_j."""

    runs: TimeRuns
    value_HE: NDArray[np.float32]

    def rows(self, sequences: slice, rows: slice) -> Tensor:
        """[B · H, R, C] float32 for some rows and the columns up to the last of them."""
        count = self.runs.count_BLE[sequences, rows].copy()
        count[..., -1] += rows.stop
        shape = (len(count), len(self.value_HE), *count.shape[1:])
        value = np.broadcast_to(self.value_HE[:, None], shape)
        bias = np.repeat(value.ravel(), np.broadcast_to(count[:, None], shape).ravel())
        return torch.from_numpy(bias).view(shape[0] * shape[1], shape[2], rows.stop)


def time_runs(time_BL: Tensor, known_BL: Tensor) -> TimeRuns | None:
    """Runs of rows of rising times; None where a time is not known or times fall."""
    time, known = time_BL.numpy(), known_BL.numpy()
    if not known.all() or (time[:, 1:] < time[:, :-1]).any():
        return None
    bound_E = _BOUNDS[: np.searchsorted(_BOUNDS, (time[:, -1] - time[:, 0]).max(), "right")][::-1]
    count = np.empty((*time.shape, len(bound_E) + 1), dtype=np.intp)
    end = np.zeros((len(bound_E) + 1, time.shape[1]), dtype=np.intp)
    for row, time_L in enumerate(time):
        # Sorted keys one after another: numpy then starts where the last search ended.
        oldest_EL = time_L - bound_E[:, None]
        end[1:] = time_L.searchsorted(oldest_EL.ravel(), "right").reshape(oldest_EL.shape)
        count[row, :, :-1] = np.diff(end, axis=0).T
        count[row, :, -1] = -end[-1]
    return TimeRuns(count)


def attend_blocks(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, bias: RunBias | None, *, softmax: bool) -> Tensor:
    """Softmax or SiLU weights of scaled scores times values, each row over itself and those before it.

    Args:
        q_BLHD, k_BLHD, v_BLHD: [B, L, H, D].
        bias: added to the scaled scores.
    Returns:
        [B, L, H, D].
    """
    num_sequences, length, num_heads, width = q_BLHD.shape
    q = _by_head(q_BLHD) * width**-0.5
    k, v = _by_head(k_BLHD).transpose(1, 2), _by_head(v_BLHD)
    out_BHLD = torch.empty(num_sequences, num_heads, length, width, dtype=v.dtype)
    for sequences, rows in _blocks(num_sequences, length, num_heads):
        heads = slice(sequences.start * num_heads, sequences.stop * num_heads)
        ours, past = q[heads, rows], k[heads, :, : rows.stop]
        if bias is None:
            score = ours @ past
        else:
            score = bias.rows(sequences, rows).to(ours.dtype).baddbmm_(ours, past)
        now = score[:, :, rows]
        if softmax:
            now += torch.full(now.shape[1:], -torch.inf, dtype=now.dtype).triu_(1)
            weight = score.softmax(-1)
        else:
            weight = F.silu(score, inplace=True)
            now.tril_()
        part = weight @ v[heads, : rows.stop]
        out_BHLD[sequences, :, rows] = part.view(-1, num_heads, *part.shape[1:])
    return out_BHLD.transpose(1, 2)


def _by_head(x_BLHD: Tensor) -> Tensor:
    """[B · H, L, D]."""
    return x_BLHD.transpose(1, 2).flatten(0, 1)


def _blocks(num_sequences: int, length: int, num_heads: int) -> Iterator[tuple[slice, slice]]:
    """Sequences and rows of each block."""
    rows = min(_ROWS, length)
    together = max(1, _SCORES // (num_heads * rows * length))
    for first in range(0, num_sequences, together):
        for low in range(0, length, rows):
            yield slice(first, min(first + together, num_sequences)), slice(low, min(low + rows, length))
