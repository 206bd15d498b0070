"""Passages with what was made of them once: one version of a store, never changed.

Suffixes: P = passages, K = dimensions, V = words of a sparse encoder, N = allowed passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import InputError, shown
from recsys.index.protocol import VectorIndex
from recsys.retrieval.rag.keyword_index import KeywordIndex
from recsys.retrieval.rag.passage import Passage

__all__ = ["PassageStock", "best_rows", "check_item_ids", "rows_tensor"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PassageStock:
    """Everything is row by row of the passages."""

    passages: tuple[Passage, ...]
    gone_P: Bools
    """Passages that no search returns."""
    keywords: KeywordIndex
    index: VectorIndex | None = None
    """Of the unit rows of ``vectors_PK``."""
    vectors_PK: Tensor | None = None
    """float32 on the CPU; rows of length 1, or 0 for a blank text."""
    sparse_PV: scipy.sparse.csr_matrix | None = None
    row_of: dict[str, int] = field(init=False, repr=False)
    """Passage id -> row, gone ones included."""
    rows_of_item: dict[Any, list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        row_of = {passage.id: row for row, passage in enumerate(self.passages)}
        if len(row_of) < len(self.passages):
            raise ValueError("passages must have different ids")
        by_item: dict[Any, list[int]] = {}
        for row, passage in enumerate(self.passages):
            if passage.item_id is not None:
                by_item.setdefault(passage.item_id, []).append(row)
        object.__setattr__(self, "row_of", row_of)
        object.__setattr__(self, "rows_of_item", by_item)

    def allowed(self, item_ids: Sequence[Any] | None, sources: Sequence[str] | None) -> Bools | None:
        """[P] passages that a search may return; None = all."""
        if item_ids is None and sources is None and not self.gone_P.any():
            return None
        allowed_P = ~self.gone_P
        if item_ids is not None:
            of_items_P = np.zeros(len(self.passages), dtype=np.bool_)
            for item_id in item_ids:
                if isinstance(item_id, (int, str)):
                    of_items_P[self.rows_of_item.get(item_id, [])] = True
            allowed_P &= of_items_P
        if sources is not None:
            wanted = set(sources)
            allowed_P &= np.array([passage.source in wanted for passage in self.passages], dtype=np.bool_)
        return allowed_P


def check_item_ids(passages: Sequence[Passage]) -> None:
    """Item ids of a store are all numbers or all texts, as those of a catalogue.

    Raises:
        InputError: they are not.
    """
    kinds = {type(passage.item_id) for passage in passages if passage.item_id is not None}
    for kind in sorted(kinds - {int, str}, key=str):
        raise InputError(f"item ids of passages must be integers or strings, got {kind.__name__}")
    if len(kinds) > 1:
        odd = next(passage.item_id for passage in passages if isinstance(passage.item_id, str))
        raise InputError(f"item ids of passages must be all integers or all strings; {shown(odd)} is a string")


def best_rows(score_P: NDArray[np.float32], depth: int) -> list[int]:
    """Rows with the largest scores above 0, best first; equal scores go to the smaller row.

    >>> best_rows(np.array([0, 2, 1, 2, -1], dtype=np.float32), 2)
    [1, 3]
    """
    row_C = np.flatnonzero(score_P > 0)
    if len(row_C) > depth:
        floor = np.partition(score_P[row_C], len(row_C) - depth)[len(row_C) - depth]
        row_C = row_C[score_P[row_C] >= floor]
    order = np.lexsort((row_C, -score_P[row_C].astype(np.float64)))
    rows: list[int] = row_C[order][:depth].tolist()
    return rows


def rows_tensor(allowed_P: Bools) -> Tensor:
    """[N] int64 rising."""
    return torch.from_numpy(np.flatnonzero(allowed_P).astype(np.int64))
