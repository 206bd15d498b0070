"""Balanced residual k-means, the default tokenizer.

k-means level by level as in GRID (arXiv 2507.22224), balanced as in OneRec (arXiv 2502.18965).
Suffixes: I = items, V = entries of a vector, L = levels, K = codes of one level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.tokenizers.balanced import BALANCES, Balance, balanced_codes, balanced_means
from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.kmeans import kmeans
from recsys.tokenizers.protocol import Codes, Floats
from recsys.tokenizers.residual_codebooks import default_sizes, renumbered_codebook, residual_codes, residual_sum
from recsys.tokenizers.vector_checks import (
    blocks_of,
    check_sizes,
    checked_fit_rows,
    checked_rows,
    count_distinct,
    require_distinct,
)

__all__ = ["ResidualKMeans", "ResidualKMeansConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualKMeansConfig:
    """Fit of :class:`ResidualKMeans`."""

    codebook_sizes: tuple[int, ...] | None = None
    """Codes per level; None = :func:`~recsys.tokenizers.residual_codebooks.default_sizes` of the distinct vectors."""
    balance: Balance = "capacity"
    """capacity = every code of a level has ⌊I/K⌋ or one more of the catalogue's items; sinkhorn = about equally many,
    softly; none = the nearest code. A balance tears equal vectors apart: where many items have none of their own (rows
    of zeros), leave them out of the fit or take none."""
    num_steps: int = 25
    """Steps of plain k-means per level, at most."""
    balanced_steps: int = 5
    """Rounds of balanced assignment and new means that follow."""
    max_training_items: int = 262_144
    """Plain k-means sees so many items, drawn once: a thousand for each of 256 codes. Balanced rounds see all, those of
    sinkhorn one part of :func:`~recsys.tokenizers.balanced.sinkhorn_codes`."""

    def __post_init__(self) -> None:
        check_sizes(self.codebook_sizes, type(self).__name__)
        if self.balance not in BALANCES:
            raise ValueError(f"ResidualKMeansConfig.balance must be one of {', '.join(BALANCES)}, got {self.balance!r}")
        for name, least in (("num_steps", 1), ("balanced_steps", 0), ("max_training_items", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"ResidualKMeansConfig.{name} must be at least {least}, got {getattr(self, name)!r}")


def _subtract(rest_IV: Floats, codebook_KV: Floats, codes_I: Codes) -> None:
    """Take the codes' vectors from the rows, in place and without a second copy of them all."""
    for block in blocks_of(*rest_IV.shape):
        rest_IV[block] -= codebook_KV[codes_I[block]]


class ResidualKMeans(FittedTokenizer):
    """A codebook of centroids per level, each fitted on what the levels before left over.

    Args:
        config: with ``codebook_sizes`` given.
        codebooks: per level [K, V] float32.
    """

    name = "rq-kmeans"
    config_class = ResidualKMeansConfig

    def __init__(self, config: ResidualKMeansConfig, codebooks: Sequence[Floats]) -> None:
        self.config = config
        self.codebooks = tuple(np.ascontiguousarray(codebook, dtype=np.float32) for codebook in codebooks)
        self.codebook_sizes = tuple(len(codebook) for codebook in self.codebooks)
        self.width = self.codebooks[0].shape[1]

    @classmethod
    def fit(cls, vectors_IV: ArrayLike, config: ResidualKMeansConfig | None = None, *, seed: int) -> Self:
        """Fit on a catalogue.

        Args:
            vectors_IV: [I, V] finite floats.
            config: None = the defaults.
            seed: of the draws; same vectors, config, seed and number of threads give the same bytes.

        Raises:
            ValueError: NaN or infinity, equal rows, or a level with fewer distinct residuals than codes.
        """
        config = config or ResidualKMeansConfig()
        rows_IV = checked_fit_rows(vectors_IV, name=cls.name)
        sizes = config.codebook_sizes or default_sizes(count_distinct(rows_IV, enough=1024))
        rng = np.random.default_rng(seed)
        rest_IV = rows_IV.copy()
        codebooks = []
        for level, size in enumerate(sizes):
            require_distinct(rest_IV, size, name=cls.name, where=f"level {level + 1}")
            sample_IV = rest_IV
            if len(rest_IV) > config.max_training_items:
                sample_IV = rest_IV[np.sort(rng.choice(len(rest_IV), config.max_training_items, replace=False))]
            codebook_KV = kmeans(sample_IV, size, rng, num_steps=config.num_steps)
            codebook_KV = balanced_means(rest_IV, codebook_KV, config.balance, config.balanced_steps)
            codebooks.append(codebook_KV)
            if level + 1 < len(sizes):
                _subtract(rest_IV, codebook_KV, balanced_codes(rest_IV, codebook_KV, config.balance))
        return cls(replace(config, codebook_sizes=sizes), codebooks)

    def assign(self, vectors_IV: ArrayLike) -> Codes:
        """[I, L] int32 codes of a whole catalogue under the config's balance, level after level.

        Raises:
            ValueError: with balance "capacity", fewer items than a level has codes.
        """
        rest_IV = checked_rows(vectors_IV, name=self.name, width=self.width)
        if self.config.balance == "none":
            return self.encode(rest_IV)
        if len(rest_IV) < max(self.codebook_sizes):
            raise ValueError(
                f"{self.name}: {len(rest_IV)} items cannot share {max(self.codebook_sizes)} codes equally; "
                "assign() takes a whole catalogue, use append() for single items"
            )
        rest_IV = rest_IV.copy()
        codes_IL = np.empty((len(rest_IV), len(self.codebooks)), np.int32)
        for level, codebook_KV in enumerate(self.codebooks):
            codes_IL[:, level] = balanced_codes(rest_IV, codebook_KV, self.config.balance)
            _subtract(rest_IV, codebook_KV, codes_IL[:, level])
        return codes_IL

    def renumbered(self, permutations: Sequence[NDArray[np.int64]]) -> Self:
        """The same codebooks with their rows in another order."""
        books = zip(self.codebooks, permutations, strict=True)
        return type(self)(self.config, [renumbered_codebook(book, number_K) for book, number_K in books])

    def _encode_block(self, rows_BV: Floats) -> Codes:
        return residual_codes(rows_BV, self.codebooks)

    def _decode_block(self, codes_BL: Codes) -> Floats:
        return residual_sum(codes_BL, self.codebooks)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {f"codebook_{level}": codebook for level, codebook in enumerate(self.codebooks)}

    @classmethod
    def _from_arrays(cls, config: ResidualKMeansConfig, arrays: Mapping[str, NDArray[Any]]) -> Self:
        return cls(config, [arrays[f"codebook_{level}"] for level in range(len(arrays))])
