"""The codes of a catalogue, checked, hashed and grouped into leaves.

Suffixes: I = items, L = levels, F = leaves (different tuples of codes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.tokenizers.protocol import Codes
from recsys.tokenizers.vector_checks import check_sizes, checked_codes

__all__ = ["Leaves", "SemanticIds"]


@dataclass(frozen=True, slots=True, eq=False)
class Leaves:
    """Items by their tuple of codes."""

    codes_FL: Codes
    """Different tuples in rising lexicographic order."""
    offsets_F1: NDArray[np.int64]
    """[F + 1]: items of leaf f are ``items_I[offsets_F1[f]:offsets_F1[f + 1]]``; no leaf is empty."""
    items_I: NDArray[np.int64]
    """Every internal id once. Inside a leaf: the larger popularity first, then the smaller id."""


@dataclass(frozen=True, slots=True, eq=False)
class SemanticIds:
    """Codes of every item of a catalogue; several items may share a tuple. Made by :meth:`from_codes`."""

    codes_IL: Codes
    """Row i belongs to the item of internal id i; read-only."""
    codebook_sizes: tuple[int, ...]
    content_hash: str = field(init=False)
    """SHA-256 of sizes, shape and codes: equal for equal semantic IDs, on every machine."""

    def __post_init__(self) -> None:
        about = json.dumps([list(self.codebook_sizes), list(self.codes_IL.shape)]).encode()
        digest = hashlib.sha256(about)
        digest.update(np.ascontiguousarray(self.codes_IL, dtype="<i4").data)
        object.__setattr__(self, "content_hash", digest.hexdigest())

    @classmethod
    def from_codes(cls, codes_IL: ArrayLike, codebook_sizes: Sequence[int]) -> SemanticIds:
        """Check codes and copy them.

        Args:
            codes_IL: [I, L] integers, I ≥ 1.
            codebook_sizes: L sizes; code c of level l must be 0 ≤ c < codebook_sizes[l].

        Raises:
            ValueError: no items, another shape or type, sizes below 2, or a code out of range; says where.
        """
        sizes = tuple(int(size) for size in codebook_sizes)
        check_sizes(sizes, cls.__name__)
        codes = checked_codes(codes_IL, sizes, name=cls.__name__).copy()
        if len(codes) == 0:
            raise ValueError(f"{cls.__name__}: there are 0 items; give a row of codes for every item of the catalogue")
        codes.setflags(write=False)
        return cls(codes, sizes)

    @property
    def num_items(self) -> int:
        """Items I of the catalogue."""
        return len(self.codes_IL)

    @property
    def num_levels(self) -> int:
        """Codes L of an item."""
        return len(self.codebook_sizes)

    def leaves(self, popularity_I: ArrayLike | None = None) -> Leaves:
        """Items by their tuple of codes.

        Args:
            popularity_I: [I] counts, such as training events of each item; None = all alike.

        Raises:
            ValueError: counts of another length, or NaN.
        """
        popularity = np.zeros(self.num_items) if popularity_I is None else np.asarray(popularity_I, dtype=np.float64)
        if popularity.shape != (self.num_items,) or np.isnan(popularity).any():
            raise ValueError(
                f"popularity must be one number for each of the {self.num_items} items, got shape {popularity.shape} "
                f"with {int(np.isnan(popularity).sum())} NaN; count the events of every internal id"
            )
        # The last key of lexsort is the first to sort by; it is stable, so equal ones stay in the order of ids.
        keys: list[NDArray[Any]] = [-popularity, *self.codes_IL.T[::-1]]
        items_I = np.lexsort(keys)
        sorted_IL = self.codes_IL[items_I]
        first_I = np.ones(self.num_items, dtype=bool)
        first_I[1:] = (sorted_IL[1:] != sorted_IL[:-1]).any(axis=1)
        starts_F = np.flatnonzero(first_I)
        return Leaves(
            codes_FL=np.ascontiguousarray(sorted_IL[starts_F]),
            offsets_F1=np.append(starts_F, self.num_items).astype(np.int64),
            items_I=items_I.astype(np.int64),
        )
