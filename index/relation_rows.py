"""The vectors behind a relation of content, of a catalogue that changes: cosines of a few items with all others.

Suffixes: I = items, S = items beside the table, J = items that move, B = items of a block, V = vocabulary or vector
dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.index.text_neighbours import unit_rows

__all__ = ["RelationRows"]

_ITEMS_AT_ONCE = 2**14

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RelationRows:
    """Unit rows of every item, in a table that is shared and rows beside it. Immutable: moving returns another one."""

    table: Any
    """[I', V] sparse or dense rows of length 1 or 0, of the catalogue at first."""
    across: Any
    """[V, I'] the sparse table the other way round; None where it is dense."""
    side_I: Ints
    """[I] row beside the table; -1 = the item's row is in the table."""
    side: Any
    """[S, V]."""

    @classmethod
    def of(cls, rows: scipy.sparse.spmatrix | NDArray[np.float32]) -> RelationRows:
        """Take the [I, V] rows of a catalogue; they need not have unit length."""
        table = _unit(rows)
        across = table.T.tocsr() if scipy.sparse.issparse(table) else None
        return cls(table, across, np.full(table.shape[0], -1, dtype=np.int64), table[:0])

    @property
    def num_items(self) -> int:
        return len(self.side_I)

    def moved(
        self, num_items: int, moved_J: Ints, rows_JV: scipy.sparse.spmatrix | NDArray[np.float32]
    ) -> RelationRows:
        """With other rows for some items.

        Args:
            num_items: of the catalogue now.
            moved_J: [J] rising: older items with other rows, and all new ones.
            rows_JV: those rows.
        """
        side_I = np.concatenate([self.side_I, np.full(num_items - len(self.side_I), -1, dtype=np.int64)])
        kept_S = np.ones(self.side.shape[0], dtype=np.bool_)
        kept_S[side_I[moved_J][side_I[moved_J] >= 0]] = False
        place_S = np.cumsum(kept_S) - 1
        beside_I = side_I >= 0
        side_I[beside_I] = place_S[side_I[beside_I]]
        side_I[moved_J] = int(kept_S.sum()) + np.arange(len(moved_J))
        parts = [self.side[np.flatnonzero(kept_S)], _unit(rows_JV)]
        sparse = scipy.sparse.issparse(self.table)
        return replace(self, side_I=side_I, side=scipy.sparse.vstack(parts, "csr") if sparse else np.concatenate(parts))

    def rows(self) -> Any:
        """[I, V] unit rows of every item, sparse or dense as the table is."""
        if scipy.sparse.issparse(self.table):
            both, at_I = scipy.sparse.vstack([self.table, self.side], "csr"), self.table.shape[0] + self.side_I
        else:
            both, at_I = np.concatenate([self.table, self.side]), len(self.table) + self.side_I
        return both[np.where(self.side_I < 0, np.arange(self.num_items), at_I)]

    def cosines(self, item_B: Tensor) -> Tensor:
        """[B, I] float32 cosines of items with all items, at most 1; on the device of ``item_B``."""
        items = item_B.cpu().numpy()
        row_B = self.side_I[items]
        inside_B, beside_B = np.flatnonzero(row_B < 0), np.flatnonzero(row_B >= 0)
        cosine_BI = np.zeros((len(items), self.num_items), dtype=np.float32)
        moved_N = np.flatnonzero(self.side_I >= 0)
        for at_B, rows in ((inside_B, self.table[items[inside_B]]), (beside_B, self.side[row_B[beside_B]])):
            if len(at_B):
                cosine_BI[at_B, : self.table.shape[0]] = self._with_table(rows)
                if len(moved_N):
                    cosine_BI[np.ix_(at_B, moved_N)] = _product(rows, self.side[self.side_I[moved_N]])
        return torch.from_numpy(np.minimum(cosine_BI, np.float32(1.0))).to(item_B.device)

    def _with_table(self, rows: Any) -> NDArray[np.float32]:
        if self.across is not None:
            product: NDArray[np.float32] = (rows @ self.across).toarray()
            return product
        parts = [
            _product(rows, self.table[low : low + _ITEMS_AT_ONCE]) for low in range(0, len(self.table), _ITEMS_AT_ONCE)
        ]
        return np.concatenate(parts, axis=1)


def _product(left: Any, right: Any) -> NDArray[np.float32]:
    """[B, I] inner products; of dense rows rounded once, as by the exact index."""
    if scipy.sparse.issparse(left):
        sparse: NDArray[np.float32] = (left @ right.T).toarray()
        return sparse
    dense: NDArray[np.float32] = (left.astype(np.float64) @ right.astype(np.float64).T).astype(np.float32)
    return dense


def _unit(rows: Any) -> Any:
    if scipy.sparse.issparse(rows):
        return unit_rows(rows)
    return torch.nn.functional.normalize(torch.as_tensor(np.asarray(rows, dtype=np.float32)), dim=1).numpy()
