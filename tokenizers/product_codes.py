"""Optimised product quantisation: long tuples of codes that do not depend on each other, as in RPG (arXiv 2506.05781).

OPQ: Ge et al., CVPR 2013 (TPAMI 36:4, 744-755), by alternation of sub-codebooks and rotation.
Suffixes: I = items, V = entries of a vector, D = entries after the projection, S = sub-quantisers (levels),
W = entries of a sub-vector, K = codes of a sub-quantiser, B = rows of one block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.tokenizers.balanced import BALANCES, Balance, balanced_codes, balanced_means
from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.kmeans import kmeans, nearest
from recsys.tokenizers.protocol import Codes, Floats
from recsys.tokenizers.residual_codebooks import default_sizes, renumbered_codebook
from recsys.tokenizers.vector_checks import (
    blocks_of,
    checked_fit_rows,
    checked_rows,
    count_distinct,
    require_distinct,
)

__all__ = ["ProductCodes", "ProductCodesConfig", "default_parts"]

Doubles = NDArray[np.float64]

_SMALLEST_VARIANCE = 1e-8  # of the largest: directions below carry rounding, and whitening would blow it up


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductCodesConfig:
    """Fit of :class:`ProductCodes`."""

    num_parts: int | None = None
    """Sub-quantisers, one code each; RPG has 16 to 64. None = :func:`default_parts` of the vectors' width."""
    codebook_size: int | None = None
    """Codes of each; None = that of :func:`~recsys.tokenizers.residual_codebooks.default_sizes`."""
    whiten: bool = True
    """Principal directions of equal variance before the rotation; else the centred entries themselves."""
    whitened_dim: int = 512
    """At most so many principal directions; fewer where the vectors have fewer, and a multiple of the parts."""
    balance: Balance = "none"
    """Of every sub-quantiser's codes over the catalogue; as in ResidualKMeansConfig."""
    num_rotations: int = 10
    """Rounds of new codebooks and a new rotation; 0 = the identity (plain product quantisation)."""
    num_steps: int = 25
    """Steps of k-means for the final codebooks, at most."""
    balanced_steps: int = 5
    """Rounds of balanced assignment and new means that follow."""
    max_training_items: int = 65_536
    """Directions, rotation and k-means see so many items, drawn once; balanced rounds see all."""

    def __post_init__(self) -> None:
        if self.balance not in BALANCES:
            raise ValueError(f"ProductCodesConfig.balance must be one of {', '.join(BALANCES)}, got {self.balance!r}")
        if self.codebook_size is not None and self.codebook_size < 2:
            raise ValueError(f"ProductCodesConfig.codebook_size must be at least 2, got {self.codebook_size!r}")
        if self.num_parts is not None and self.num_parts < 1:
            raise ValueError(f"ProductCodesConfig.num_parts must be at least 1, got {self.num_parts!r}")
        least = {"whitened_dim": 1, "num_rotations": 0, "num_steps": 1}
        for name, value in {**least, "balanced_steps": 0, "max_training_items": 2}.items():
            if getattr(self, name) < value:
                raise ValueError(f"ProductCodesConfig.{name} must be at least {value}, got {getattr(self, name)!r}")


def default_parts(width: int) -> int:
    """Sub-quantisers for vectors of a width: 16, halved until each has two entries or more.

    >>> default_parts(384), default_parts(20), default_parts(1)
    (16, 8, 1)
    """
    parts = 16
    while parts > 1 and 2 * parts > width:
        parts //= 2
    return parts


def _whitening(rows_IV: Floats, mean_V: Floats, parts: int, most: int) -> tuple[Doubles, Doubles]:
    """[V, D] to D uncorrelated entries of variance 1, and [D, V] back."""
    covariance_VV = np.zeros((rows_IV.shape[1],) * 2)
    for block in blocks_of(*rows_IV.shape):
        centred = rows_IV[block].astype(np.float64) - mean_V
        covariance_VV += centred.T @ centred
    variance_V, direction_VV = np.linalg.eigh(covariance_VV / len(rows_IV))
    rank = int((variance_V > _SMALLEST_VARIANCE * variance_V[-1]).sum())
    dim = min(rank, most) // parts * parts
    if dim == 0:
        raise ValueError(
            f"{ProductCodes.name}: the vectors have {min(rank, most)} independent directions for "
            f"{parts} sub-quantisers; give fewer num_parts, or whiten=False"
        )
    deviation_D, direction_VD = np.sqrt(variance_V[::-1][:dim]), direction_VV[:, ::-1][:, :dim]
    return direction_VD / deviation_D, direction_VD.T * deviation_D[:, None]


def _filling(width: int, num_parts: int) -> Doubles:
    """[V, D] the identity, with columns of zeros up to a multiple of the parts."""
    if width < num_parts:
        raise ValueError(
            f"{ProductCodes.name}: vectors of {width} entries cannot make {num_parts} sub-vectors; give fewer num_parts"
        )
    return np.eye(width, -(-width // num_parts) * num_parts)


def _rotation(
    plain_ID: Floats, parts: int, size: int, num_rotations: int, rng: np.random.Generator
) -> tuple[Doubles, list[Floats | None]]:
    """[D, D] rotation and S sub-codebooks that fit it, in turns: codebooks of the rotated rows, then the rotation that
    brings the rows nearest to their codes (orthogonal Procrustes)."""
    rotation_DD = np.eye(plain_ID.shape[1])
    books: list[Floats | None] = [None] * parts
    for turn in range(num_rotations):
        pieces = np.split((plain_ID @ rotation_DD).astype(np.float32), parts, axis=1)
        near = []
        for part, piece in enumerate(pieces):
            piece_IW = np.ascontiguousarray(piece)
            steps = 2 if turn else 5
            book_KW = kmeans(piece_IW, size, rng, num_steps=steps, start_KD=books[part])
            near.append(book_KW[nearest(piece_IW, book_KW, settle=False)[0]])
            books[part] = book_KW
        left, _, right = np.linalg.svd(plain_ID.T.astype(np.float64) @ np.concatenate(near, axis=1))
        rotation_DD = left @ right
    return rotation_DD, books


def _projected(rows_IV: Floats, mean_V: Floats, project_VD: Floats | Doubles) -> Floats:
    """[I, D] centred rows times a matrix, block by block and in float64: rounded to float32 once, so that a row does
    not show who shared the product."""
    project = project_VD.astype(np.float64)
    blocks = blocks_of(*rows_IV.shape)
    parts = [((rows_IV[block] - mean_V) @ project).astype(np.float32) for block in blocks]
    return np.concatenate(parts) if parts else np.empty((0, project.shape[1]), np.float32)


def _sub_vectors(rows_IV: Floats, mean_V: Floats, project_VD: Floats, part: int, num_parts: int) -> Floats:
    """[I, W] one part of the projected rows."""
    width = project_VD.shape[1] // num_parts
    return _projected(rows_IV, mean_V, project_VD[:, part * width : (part + 1) * width])


class ProductCodes(FittedTokenizer):
    """A codebook per sub-vector of the rotated vectors.

    Args:
        config: with ``codebook_size`` given.
        mean_V: taken off before the projection.
        project_VD, back_DV: whitening and rotation, and back.
        codebooks_SKW: the sub-codebooks.
    """

    name = "opq"
    config_class = ProductCodesConfig

    def __init__(
        self, config: ProductCodesConfig, mean_V: Floats, project_VD: Floats, back_DV: Floats, codebooks_SKW: Floats
    ) -> None:
        self.config = config
        self.mean_V = np.asarray(mean_V, dtype=np.float32)
        self.project_VD = np.asarray(project_VD, dtype=np.float32)
        self.back_DV = np.asarray(back_DV, dtype=np.float32)
        self.codebooks_SKW = np.ascontiguousarray(codebooks_SKW, dtype=np.float32)
        self.codebook_sizes = (self.codebooks_SKW.shape[1],) * len(self.codebooks_SKW)
        self.width = len(self.mean_V)

    @classmethod
    def fit(cls, vectors_IV: ArrayLike, config: ProductCodesConfig | None = None, *, seed: int) -> Self:
        """Fit on a catalogue.

        Args:
            vectors_IV: [I, V] finite floats.
            config: None = the defaults.
            seed: of the draws; same vectors, config, seed and number of threads give the same bytes.

        Raises:
            ValueError: NaN or infinity, equal rows, fewer directions than sub-quantisers, or a sub-quantiser with
                fewer distinct sub-vectors than codes.
        """
        config = config or ProductCodesConfig()
        rows_IV = checked_fit_rows(vectors_IV, name=cls.name)
        rng = np.random.default_rng(seed)
        sample_IV = rows_IV
        if len(rows_IV) > config.max_training_items:
            sample_IV = rows_IV[np.sort(rng.choice(len(rows_IV), config.max_training_items, replace=False))]
        size = config.codebook_size or default_sizes(count_distinct(rows_IV, enough=1024))[0]
        parts = config.num_parts or default_parts(rows_IV.shape[1])
        config = replace(config, codebook_size=size, num_parts=parts)
        mean_V = sample_IV.mean(axis=0, dtype=np.float64).astype(np.float32)
        if config.whiten:
            project_VD, back_DV = _whitening(sample_IV, mean_V, parts, config.whitened_dim)
        else:
            project_VD = _filling(rows_IV.shape[1], parts)
            back_DV = np.ascontiguousarray(project_VD.T)
        rotation_DD, books = _rotation(
            _projected(sample_IV, mean_V, project_VD), parts, size, config.num_rotations, rng
        )
        project32_VD = (project_VD @ rotation_DD).astype(np.float32)
        finals = []
        for part, book_KW in enumerate(books):
            piece_IW = _sub_vectors(sample_IV, mean_V, project32_VD, part, parts)
            require_distinct(piece_IW, size, name=cls.name, where=f"sub-quantiser {part + 1}")
            book_KW = kmeans(piece_IW, size, rng, num_steps=config.num_steps, start_KD=book_KW)
            if config.balance != "none":
                if sample_IV is not rows_IV:
                    piece_IW = _sub_vectors(rows_IV, mean_V, project32_VD, part, parts)
                book_KW = balanced_means(piece_IW, book_KW, config.balance, config.balanced_steps)
            finals.append(book_KW)
        return cls(config, mean_V, project32_VD, (rotation_DD.T @ back_DV).astype(np.float32), np.stack(finals))

    def assign(self, vectors_IV: ArrayLike) -> Codes:
        """[I, S] int32 codes of a whole catalogue under the config's balance, each sub-quantiser for itself.

        Raises:
            ValueError: with balance "capacity", fewer items than codes.
        """
        rows_IV = checked_rows(vectors_IV, name=self.name, width=self.width)
        if self.config.balance == "none":
            return self.encode(rows_IV)
        if len(rows_IV) < self.codebook_sizes[0]:
            raise ValueError(
                f"{self.name}: {len(rows_IV)} items cannot share {self.codebook_sizes[0]} codes equally; "
                "assign() takes a whole catalogue, use append() for single items"
            )
        columns = []
        for part, book_KW in enumerate(self.codebooks_SKW):
            piece_IW = _sub_vectors(rows_IV, self.mean_V, self.project_VD, part, len(self.codebooks_SKW))
            columns.append(balanced_codes(piece_IW, book_KW, self.config.balance))
        return np.stack(columns, axis=1)

    def renumbered(self, permutations: Sequence[NDArray[np.int64]]) -> Self:
        """The same rotation; the rows of the sub-codebooks in another order."""
        books = zip(self.codebooks_SKW, permutations, strict=True)
        moved = np.stack([renumbered_codebook(book, number_K) for book, number_K in books])
        return type(self)(self.config, self.mean_V, self.project_VD, self.back_DV, moved)

    def _encode_block(self, rows_BV: Floats) -> Codes:
        rotated_BD = _projected(rows_BV, self.mean_V, self.project_VD)
        pieces = np.split(rotated_BD, len(self.codebooks_SKW), axis=1)
        books = zip(pieces, self.codebooks_SKW, strict=True)
        return np.stack([nearest(np.ascontiguousarray(piece), book)[0] for piece, book in books], axis=1)

    def _decode_block(self, codes_BL: Codes) -> Floats:
        chosen = [book[codes_BL[:, part]] for part, book in enumerate(self.codebooks_SKW)]
        return (np.concatenate(chosen, axis=1) @ self.back_DV.astype(np.float64) + self.mean_V).astype(np.float32)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "mean": self.mean_V,
            "project": self.project_VD,
            "back": self.back_DV,
            "codebooks": self.codebooks_SKW,
        }

    @classmethod
    def _from_arrays(cls, config: ProductCodesConfig, arrays: Mapping[str, NDArray[Any]]) -> Self:
        return cls(config, arrays["mean"], arrays["project"], arrays["back"], arrays["codebooks"])
