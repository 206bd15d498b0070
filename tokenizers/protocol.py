"""What every tokenizer of vectors promises: items as vectors in, tuples of codes out.

Suffixes: N = vectors given, I = items of the catalogue, V = entries of a vector, L = levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Codes", "Floats", "Health", "SemanticTokenizer"]

Floats = NDArray[np.float32]
Codes = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Health:
    """How well codes stand for the vectors they were made from."""

    num_items: int
    num_leaves: int
    """Different tuples of codes."""
    num_collisions: int
    """Items that share their tuple with at least one other item."""
    largest_leaf: int
    """Items of the fullest tuple."""
    dead_codes: tuple[int, ...]
    """Per level: codes that no item has."""
    entropy_bits: tuple[float, ...]
    """Per level: entropy of the codes' shares of the items."""
    max_bits: tuple[float, ...]
    """Per level: log2 of the codebook's size, which is the entropy of equal shares."""
    relative_error: float
    """Squared error of the reconstructions over the squared distances from the mean vector: 0 = exact, 1 = no
    better than the mean for every item. Methods that reconstruct badly can exceed 1."""
    neighbours_kept: float
    """Share of the 10 nearest by cosine among the vectors that are among the 10 nearest of the reconstructions."""


@runtime_checkable
class SemanticTokenizer(Protocol):
    """Fitted codebooks. Immutable, and safe to use from many threads.

    The codes of a vector in :meth:`encode` are a function of that vector alone, whoever shares the batch.
    """

    @property
    def name(self) -> str:
        """Name of the method: rq-kmeans, rq-vae, fsq or opq."""
        ...

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level; code c of level l is 0 ≤ c < codebook_sizes[l]."""
        ...

    @property
    def width(self) -> int:
        """Entries V of the vectors."""
        ...

    def encode(self, vectors_NV: ArrayLike) -> Codes:
        """Codes of vectors, each for itself.

        Args:
            vectors_NV: [N, V] finite floats; zero rows are vectors like any other. CPU tensors do as well.

        Returns:
            [N, L] int32.

        Raises:
            ValueError: another width, NaN or infinity.
        """
        ...

    def assign(self, vectors_IV: ArrayLike) -> Codes:
        """Codes of a whole catalogue at once: under the method's balance, where it has one.

        For the vectors of the fit these are the codes the codebooks were fitted with. Without a balance it is
        :meth:`encode`; with one, a code depends on all rows that are given.
        """
        ...

    def append(self, vectors_NV: ArrayLike) -> Codes:
        """Codes of new items with frozen codebooks, so that no older item's codes change.

        This is :meth:`encode`: the balance is not applied, and a code may end up with more items than it allows.
        """
        ...

    def decode(self, codes_NL: ArrayLike) -> Floats:
        """[N, V] reconstructions of codes; ValueError where a code is out of range."""
        ...

    def health(self, vectors_IV: ArrayLike, codes_IL: ArrayLike) -> Health:
        """How well codes of this tokenizer stand for vectors."""
        ...

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer.safetensors`` into a folder, which is made where it is missing."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote; ValueError where a file is missing, changed or foreign."""
        ...
