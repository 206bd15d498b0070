"""What every vector index promises, and the checks of a request that all share.

Suffixes: Q = queries, E = excluded ids of a query, N = allowed ids, I = items, D = dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from recsys.index.hits import Hits

__all__ = ["VectorIndex", "check_lists", "check_queries", "no_hits"]


@runtime_checkable
class VectorIndex(Protocol):
    """Items with the largest inner product.

    Ids are rows of the vectors the index was built from. A score is the inner product, rounded once to float32,
    whatever found the item. Safe to search from many threads.
    """

    kind: str
    """Name under which the registry builds it."""
    gone_I: Tensor | None
    """[I] bool, items that no search returns; None = all may be. Files do not hold it."""

    @property
    def num_items(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def search(
        self, query_QD: Tensor, k: int, *, exclude_QE: Tensor | None = None, allow_N: Tensor | None = None
    ) -> Hits:
        """The ``k`` best items of each query.

        Args:
            query_QD: [Q, D] float32, finite.
            k: at least 1; places beyond the reachable items stay unfilled, and as many are filled as are reachable.
            exclude_QE: [Q, E] int64 ids that the query must not get, padded with -1; others outside the catalogue
                are ignored.
            allow_N: [N] int64 ids, strictly rising: nothing else is returned to any query. Empty = nothing at all.

        Returns:
            Best first; equal scores go to the smaller id; unfilled places are (-1, -inf). On the queries' device.
        """
        ...

    def without(self, gone_I: Tensor | None) -> Self:
        """The same index, sharing its memory, with other items gone.

        Args:
            gone_I: [I] bool on the device of the vectors; None = no item.
        """
        ...

    def moved(self, vector_ID: Tensor, moved_J: Tensor) -> Self:
        """The index of a catalogue that changed.

        Args:
            vector_ID: [I, D] float32, of at least as many items; older items keep their ids.
            moved_J: [J] int64 rising: older items whose vectors changed, and all new ones. No item is gone.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the index and ``index.json`` with the hash of every part into ``folder``."""
        ...

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> Self:
        """Read what :meth:`save` wrote, hashes first."""
        ...


def no_hits(num_queries: int, k: int, device: torch.device) -> Hits:
    """Every place unfilled."""
    return Hits(
        torch.full((num_queries, k), -1, dtype=torch.int64, device=device),
        torch.full((num_queries, k), -torch.inf, dtype=torch.float32, device=device),
    )


def check_queries(query_QD: Tensor, dim: int) -> None:
    """Raise ValueError where the queries do not fit the index."""
    if query_QD.dim() != 2 or query_QD.shape[1] != dim:
        raise ValueError(
            f"queries must be [Q, {dim}], got {list(query_QD.shape)}; use vectors of the model it was built with"
        )
    if not bool(torch.isfinite(query_QD).all()):
        row = int((~torch.isfinite(query_QD)).any(1).nonzero()[0])
        raise ValueError(f"query {row} holds a NaN or infinity; check the model's output")


def check_lists(num_queries: int, k: int, exclude_QE: Tensor | None, allow_N: Tensor | None, num_items: int) -> None:
    """Raise ValueError where ``k``, the exclusions or the allow list break the protocol."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if exclude_QE is not None:
        dtype, shape = exclude_QE.dtype, list(exclude_QE.shape)
        if len(shape) != 2 or shape[0] != num_queries or dtype != torch.int64:
            raise ValueError(f"exclude_QE must be int64 [{num_queries}, E], got {dtype} {shape}; pad rows with -1")
    if allow_N is None:
        return
    if allow_N.dim() != 1 or allow_N.dtype != torch.int64:
        raise ValueError(f"allow_N must be int64 [N], got {allow_N.dtype} {list(allow_N.shape)}")
    if len(allow_N) and not (0 <= int(allow_N[0]) and int(allow_N[-1]) < num_items):
        raise ValueError(
            f"allow_N must hold ids from 0 to {num_items - 1}, got {int(allow_N[0])} to {int(allow_N[-1])}"
        )
    if len(allow_N) > 1 and not bool((allow_N.diff() > 0).all()):
        raise ValueError("allow_N must rise strictly; sort it and drop duplicates (torch.unique)")
