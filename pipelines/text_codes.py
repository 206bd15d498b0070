"""Codes of texts that stand for any catalogue: FSQ fitted on some, applied to all (RecGPT, arXiv 2506.06270).

Suffixes: I = items, K = dimensions, J = codes of an item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.tokenizers.fsq import Fsq, FsqConfig
from recsys.tokenizers.protocol import Codes

__all__ = ["TextCodes"]

_LEVELS = (8, 6, 5)
"""240 codes of a sub-vector. With 32 sub-vectors of the texts of goodbooks and simulated items (384 entries) .50 of the
ten nearest neighbours stay among the ten, with 24 .44, with 16 .37, with four of 1000 codes .23."""

NUM_STEPS = 1000
"""Of the fit."""


@dataclass(frozen=True)
class TextCodes:
    """A fitted tokenizer, and what a model reads of its codes."""

    tokenizer: Fsq

    @classmethod
    def fit(cls, vectors_IK: NDArray[np.float32], *, num_parts: int, seed: int) -> TextCodes:
        """Fit on the items of the training catalogues.

        Raises:
            InputError: the vectors are too narrow for so many parts, or all alike.
        """
        config = FsqConfig(num_parts=num_parts, levels=_LEVELS, num_steps=NUM_STEPS)
        try:
            return cls(Fsq.fit(vectors_IK, config, seed=seed))
        except ValueError as error:
            raise InputError(f"no codes can be fitted to the texts: {error}") from error

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each codebook."""
        return self.tokenizer.codebook_sizes

    def of(self, vectors_IK: NDArray[np.float32]) -> Codes:
        """[I, J] codes of items of any catalogue, each item for itself."""
        return self.tokenizer.encode(vectors_IK)

    def read(self, vectors_IK: NDArray[np.float32]) -> NDArray[np.float32]:
        """[I, K] unit vectors that the codes of the items decode to; zero for items without text."""
        read_IK = self.tokenizer.decode(self.of(vectors_IK))
        read_IK /= np.maximum(np.linalg.norm(read_IK, axis=1, keepdims=True), np.float32(1e-12))
        return read_IK * vectors_IK.any(axis=1, keepdims=True)
