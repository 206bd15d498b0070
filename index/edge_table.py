"""Edges of one relation, item by item, collected block by block in memory or in files.

Suffixes: I = items, B = items of a block, T = edges.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["EdgeSpool", "EdgeTable", "best_edges", "ranges"]


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """The edges of item i are rows ``indptr_I1[i]:indptr_I1[i + 1]``, best first."""

    indptr_I1: Tensor
    """[I + 1] int64."""
    id_T: Tensor
    """[T] int32."""
    value_T: Tensor
    """[T] float32."""

    @property
    def num_items(self) -> int:
        return len(self.indptr_I1) - 1

    @classmethod
    def empty(cls, num_items: int) -> EdgeTable:
        none = torch.zeros(num_items + 1, dtype=torch.int64)
        return cls(none, torch.empty(0, dtype=torch.int32), torch.empty(0))

    def block(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
        """Edges per item, ids and values of items ``low`` to ``high - 1``; items beyond the table have none."""
        stop = min(high, self.num_items)
        indptr = self.indptr_I1[min(low, stop) : stop + 1]
        count_B = torch.zeros(high - low, dtype=torch.int64)
        count_B[: len(indptr) - 1] = indptr.diff()
        edges = slice(int(indptr[0]), int(indptr[-1]))
        return count_B, self.id_T[edges], self.value_T[edges]


class EdgeSpool:
    """Takes blocks of edges in the order of their items and makes a table of them.

    With a folder, the edges lie in unnamed files there, which go away with the table, and are mapped into memory: what
    of them is in memory is the system's choice.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        """Start empty; None = keep everything in memory."""
        self._counts: list[Tensor] = []
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            self._files = (tempfile.TemporaryFile(dir=scratch), tempfile.TemporaryFile(dir=scratch))

    def add(self, count_B: Tensor, id_T: Tensor, value_T: Tensor) -> None:
        """Append the edges of the next items.

        Args:
            count_B: [B] int64 edges per item.
            id_T: [T] their ids, item by item.
            value_T: [T] their values.
        """
        self._counts.append(count_B.to(torch.int64))
        columns = id_T.to(torch.int32).contiguous(), value_T.to(torch.float32).contiguous()
        if self._files is None:
            self._parts.append(columns)
            return
        for file, column in zip(self._files, columns, strict=True):
            file.write(memoryview(column.numpy()).cast("B"))  # type: ignore[arg-type]

    def table(self) -> EdgeTable:
        """The table of everything that was added; nothing can be added after."""
        start = torch.zeros(1, dtype=torch.int64)
        indptr_I1 = torch.cat([start, torch.cat([start[:0], *self._counts]).cumsum(0)])
        if self._files is not None:
            kinds: tuple[Any, Any] = (np.int32, np.float32)
            id_T, value_T = (_mapped(file, kind) for file, kind in zip(self._files, kinds, strict=True))
            return EdgeTable(indptr_I1, id_T, value_T)
        none = EdgeTable.empty(0)
        ids, values = [part[0] for part in self._parts], [part[1] for part in self._parts]
        return EdgeTable(indptr_I1, torch.cat([none.id_T, *ids]), torch.cat([none.value_T, *values]))


def _mapped(file: IO[bytes], kind: Any) -> Tensor:
    file.flush()
    if not file.tell():
        return torch.from_numpy(np.empty(0, dtype=kind))
    return torch.from_numpy(np.memmap(file, dtype=kind, mode="r+"))


def ranges(start_S: Tensor, count_S: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the ranges start, start + 1, …: the range each number belongs to, and the numbers."""
    owner_T = torch.repeat_interleave(torch.arange(len(count_S), device=count_S.device), count_S)
    shift_S = start_S - (count_S.cumsum(0) - count_S)
    return owner_T, torch.arange(len(owner_T), device=count_S.device) + shift_S[owner_T]


def best_edges(
    row_T: NDArray[Any], id_T: NDArray[Any], value_T: NDArray[Any], num_rows: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The edges with the largest values of each row of a block, best first; equal ones by smaller id.

    Args:
        row_T: [T] rows of the block, rising.
        id_T: [T] ids, rising within a row.
        value_T: [T] float32 above 0.
        num_rows: B.
        most: edges kept per row.

    Returns:
        [B] int64 edges per row, then their int32 ids and float32 values.
    """
    # Positive floats sort like their bits. One stable sort of one integer is some five times as fast as a lexsort.
    bits_T = np.ascontiguousarray(value_T, dtype=np.float32).view(np.int32).astype(np.int64)
    key_T = torch.from_numpy((row_T.astype(np.int64) << 32) - bits_T)
    order_T = key_T.sort(stable=True).indices
    count_B = torch.bincount(torch.from_numpy(row_T.astype(np.int64)), minlength=num_rows)
    kept_B = count_B.clamp(max=most)
    _, place_T = ranges(count_B.cumsum(0) - count_B, kept_B)
    chosen = order_T[place_T].numpy()
    return kept_B, torch.from_numpy(id_T[chosen].astype(np.int32)), torch.from_numpy(value_T[chosen].astype(np.float32))
