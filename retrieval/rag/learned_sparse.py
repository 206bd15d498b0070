"""Learned sparse search: a SPLADE-like model of sentence-transformers weighs the words of its vocabulary.

"SPLADE: Sparse Lexical and Expansion Model for First Stage Ranking", arXiv 2107.05720.
Suffixes: N = texts, P = passages, V = words of the model's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from recsys.errors import InputError
from recsys.tokenizers.text_encoder import LOADING_ERRORS, check_encoder, offline_loading

__all__ = ["SparseEncoder"]

_BATCH = 32


class SparseEncoder:
    """A loaded model; see :meth:`load`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.dim = int(self.encode(["a"]).shape[1])
        """Words V of its vocabulary."""

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu") -> SparseEncoder:
        """Read a model from a folder; nothing is looked up in a network.

        Raises:
            InputError: sentence-transformers is missing, or the folder holds no sparse encoder that it can read.
        """
        folder = Path(folder)
        try:
            check_encoder(folder)
        except ValueError as error:
            raise InputError(str(error)) from None
        with offline_loading():
            try:
                from sentence_transformers import SparseEncoder as Model
            except ImportError:
                raise InputError(
                    "learned sparse search needs sentence-transformers; pip install 'recsys[rag]'"
                ) from None
            try:
                model = Model(str(folder), device=device, local_files_only=True).float().eval()
            except LOADING_ERRORS as error:
                line = " ".join(str(error).split())[:300]
                raise InputError(f"{folder} cannot be loaded as a sparse encoder ({line}); give another") from error
        return cls(model)

    def encode(self, texts: Sequence[str], *, question: bool = False) -> scipy.sparse.csr_matrix:
        """[N, V] float32 weights of passages, or of questions where the model tells them apart."""
        if not len(texts):
            return scipy.sparse.csr_matrix((0, self.dim), dtype=np.float32)
        encode = self._model.encode_query if question else self._model.encode_document
        made_NV = encode(list(texts), batch_size=_BATCH, show_progress_bar=False, convert_to_tensor=True)
        sparse = made_NV.cpu().coalesce() if made_NV.is_sparse else made_NV.cpu().to_sparse()
        (row_T, column_T), value_T = sparse.indices().numpy(), sparse.values().float().numpy()
        made = scipy.sparse.csr_matrix((value_T, (row_T, column_T)), shape=tuple(made_NV.shape), dtype=np.float32)
        made.sum_duplicates()
        return made
