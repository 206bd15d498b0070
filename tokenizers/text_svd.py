"""Item text as vectors: TF-IDF of words and word pairs, and its truncated SVD.

Fitted with scikit-learn, kept as plain arrays, applied with numpy and scipy alone.
Suffixes: N = texts, V = terms of the vocabulary, K = dimensions.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.tokenizers.tokenizer_files import read_header

__all__ = ["TextSvd"]

FORMAT = "recsys-text-svd"
FORMAT_VERSION = 1
CONFIG_FILE = "text_svd.json"
ARRAYS_FILE = "text_svd.safetensors"

_WORD = re.compile(r"\w\w+")

Floats = NDArray[np.float32]


def _terms(text: str) -> list[str]:
    """Words of at least two characters, and pairs of neighbours among them."""
    words = _WORD.findall(text.lower())
    return [*words, *(f"{left} {right}" for left, right in pairwise(words))]


class TextSvd:
    """A fitted text transform.

    Args:
        vocabulary: the V terms.
        idf_V: inverse document frequency of each term.
        projection_VK: the K right singular vectors.
    """

    def __init__(self, vocabulary: Sequence[str], idf_V: Floats, projection_VK: Floats) -> None:
        if not len(vocabulary) == len(idf_V) == len(projection_VK):
            raise ValueError(
                f"{len(vocabulary)} terms, {len(idf_V)} weights and {len(projection_VK)} rows must be equally many"
            )
        self.vocabulary = tuple(vocabulary)
        self.idf_V = np.asarray(idf_V, dtype=np.float32)
        self.projection_VK = np.asarray(projection_VK, dtype=np.float32)
        self._place = {term: place for place, term in enumerate(self.vocabulary)}

    @property
    def dim(self) -> int:
        """Dimensions K of the dense vectors."""
        return int(self.projection_VK.shape[1])

    @classmethod
    def fit(
        cls, texts: Iterable[str | None], *, dim: int = 128, min_texts: int = 2, max_terms: int = 200_000, seed: int = 0
    ) -> TextSvd | None:
        """Fit on a catalogue.

        Args:
            texts: one per item; None or "" = no text.
            dim: dimensions; fewer where the texts do not have so many.
            min_texts: a term must occur in so many texts (in one, where no term occurs in more).
            max_terms: the most frequent terms that are kept.
            seed: of the randomised SVD.

        Returns:
            The transform, or None where the texts hold no word.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

        given = [text for text in texts if text and _WORD.search(text.lower())]
        if not given:
            return None
        for fewest in (min_texts, 1):
            vectorizer = TfidfVectorizer(
                analyzer=_terms, min_df=fewest, max_features=max_terms, sublinear_tf=True, dtype=np.float64
            )
            try:
                rows_NV = vectorizer.fit_transform(given)
                break
            except ValueError:  # no term in so many texts
                continue
        dim = min(dim, *rows_NV.shape)
        if rows_NV.shape[1] == 1:
            projection_VK = np.ones((1, 1))
        else:
            # One thread: sums in another order would give other bytes, and with them another data hash.
            with threadpool_limits(limits=1), np.errstate(invalid="ignore"):
                projection_VK = TruncatedSVD(dim, n_iter=7, random_state=seed).fit(rows_NV).components_.T
        return cls(
            vectorizer.get_feature_names_out().tolist(),
            vectorizer.idf_.astype(np.float32),
            np.ascontiguousarray(projection_VK, dtype=np.float32),
        )

    def sparse(self, texts: Sequence[str | None]) -> scipy.sparse.csr_matrix:
        """[N, V] TF-IDF rows of unit length; a zero row for a text without a known term."""
        indptr = [0]
        indices: list[int] = []
        counts: list[int] = []
        for text in texts:
            found = Counter(place for term in _terms(text or "") if (place := self._place.get(term)) is not None)
            row = sorted(found.items())
            indices.extend(place for place, _ in row)
            counts.extend(count for _, count in row)
            indptr.append(len(indices))
        column = np.asarray(indices, dtype=np.int32)
        weight = (1.0 + np.log(np.asarray(counts, dtype=np.float64))) * self.idf_V[column]
        matrix = scipy.sparse.csr_matrix(
            (weight, column, np.asarray(indptr, dtype=np.int64)), shape=(len(texts), len(self.vocabulary))
        )
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        matrix.data /= np.repeat(np.maximum(length, 1e-30), np.diff(matrix.indptr))
        return matrix.astype(np.float32)

    def dense(self, texts: Sequence[str | None] | scipy.sparse.csr_matrix) -> Floats:
        """[N, K] vectors of unit length; a zero row for a text without a known term.

        Args:
            texts: the texts, or what :meth:`sparse` made of them.
        """
        rows_NV = texts if isinstance(texts, scipy.sparse.csr_matrix) else self.sparse(texts)
        vector_NK = np.asarray(rows_NV @ self.projection_VK, dtype=np.float32)
        length_N1 = np.linalg.norm(vector_NK, axis=1, keepdims=True)
        return np.where(length_N1 > 1e-6, vector_NK / np.maximum(length_N1, 1e-6), 0.0).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write two files: the vocabulary as JSON, the arrays as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"format": FORMAT, "format_version": FORMAT_VERSION, "dim": self.dim, "vocabulary": self.vocabulary}
        (folder / CONFIG_FILE).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        arrays = {"idf": self.idf_V, "projection": np.ascontiguousarray(self.projection_VK)}
        save_file(arrays, folder / ARRAYS_FILE)

    @classmethod
    def load(cls, folder: Path) -> TextSvd:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, broken or of another format version.
        """
        try:
            config = read_header(folder / CONFIG_FILE)
            arrays = load_file(folder / ARRAYS_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no readable text transform ({error}); write it again") from None
        if (
            not isinstance(config, dict)
            or config.get("format") != FORMAT
            or config.get("format_version") != FORMAT_VERSION
        ):
            raise ValueError(f"{folder / CONFIG_FILE} is no {FORMAT} of version {FORMAT_VERSION}; write it again")
        words, idf_V, projection_VK = config.get("vocabulary"), arrays.get("idf"), arrays.get("projection")
        if (
            not isinstance(words, list)
            or not all(isinstance(word, str) for word in words)
            or idf_V is None
            or projection_VK is None
            or idf_V.shape != (len(words),)
            or projection_VK.ndim != 2
            or len(projection_VK) != len(words)
            or not (np.isfinite(idf_V).all() and np.isfinite(projection_VK).all())
        ):
            raise ValueError(f"{folder} holds a vocabulary and arrays that do not fit together; write it again")
        return cls(words, idf_V, projection_VK)
