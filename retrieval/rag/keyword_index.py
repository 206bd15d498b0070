"""BM25 over passages, by bm25s.

Suffixes: P = passages, V = words, T = (passage, word) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.index.stored_checks import strict_json
from recsys.retrieval.rag.words import content_words

__all__ = ["PARTS", "KeywordIndex"]

_DATA, _INDICES, _INDPTR = "bm25_scores.npy", "bm25_passages.npy", "bm25_offsets.npy"
_VOCABULARY = "bm25_words.json"
PARTS = (_DATA, _INDICES, _INDPTR, _VOCABULARY)
"""Files of a saved index; none of them is a pickle."""


class KeywordIndex:
    """Scores of the Lucene variant of BM25 (k1 = 1.5, b = 0.75), made once for all passages."""

    def __init__(self, ranker: Any, num_passages: int) -> None:
        self._ranker = ranker
        self.num_passages = num_passages

    @classmethod
    def build(cls, texts: Sequence[str]) -> KeywordIndex:
        """Count the words of all texts.

        Raises:
            InputError: bm25s is missing.
        """
        listed = [content_words(text) for text in texts]
        if not any(listed):
            return cls(None, len(texts))
        # Numbered here in the order of the texts: bm25s numbers words by a set, so that files would differ by process.
        number: dict[str, int] = {}
        ids = [[number.setdefault(word, len(number)) for word in words] for words in listed]
        ranker = _bm25()
        ranker.index((ids, number), create_empty_token=False, show_progress=False)
        return cls(ranker, len(texts))

    def scores(self, question: str) -> NDArray[np.float32]:
        """[P] scores of every passage; 0 where it shares no word with the question. A word counts as often as it is
        asked for."""
        asked = [] if self._ranker is None else self._ranker.get_tokens_ids(content_words(question))
        if not asked:
            return np.zeros(self.num_passages, dtype=np.float32)
        found: NDArray[np.float32] = self._ranker.get_scores_from_ids(asked)
        return found

    def parts(self, scratch: Path) -> dict[str, Callable[[Path], object]]:
        """File name -> what writes it, for :func:`recsys.index.parts.write_parts`; none without any word.

        Args:
            scratch: empty folder on the same disk.
        """
        if self._ranker is None:
            return {}
        self._ranker.save(
            scratch, data_name=_DATA, indices_name=_INDICES, indptr_name=_INDPTR, vocab_name=_VOCABULARY,
            allow_pickle=False, show_progress=False,
        )  # fmt: skip
        return {name: (scratch / name).replace for name in PARTS}

    @classmethod
    def load(cls, folder: Path, num_passages: int) -> KeywordIndex:
        """Map the arrays of a saved index; hashes are checked before.

        Raises:
            InputError: bm25s is missing.
            ValueError: the files do not hold an index of so many passages.
        """
        ranker = _bm25()
        vocabulary = strict_json(folder / _VOCABULARY)
        # Parameters are the ones above and not read, so that no file decides what is built.
        ranker.load_scores(
            folder, data_name=_DATA, indices_name=_INDICES, indptr_name=_INDPTR, num_docs=num_passages, mmap=True,
            allow_pickle=False,
        )  # fmt: skip
        _check(folder, vocabulary, ranker.scores, num_passages)
        ranker.vocab_dict = vocabulary
        ranker.unique_token_ids_set = set(vocabulary.values())
        ranker.nonoccurrence_array = None
        return cls(ranker, num_passages)


def _bm25() -> Any:
    try:
        import bm25s  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        raise InputError("keyword search needs bm25s; pip install 'recsys[rag]'") from None
    return bm25s.BM25(method="lucene", backend="numpy", csc_backend="numpy")


def _check(folder: Path, vocabulary: Any, scores: dict[str, Any], num_passages: int) -> None:
    """Numbers of a file must not lead outside the other files."""
    score_T, passage_T, offset_V = scores["data"], scores["indices"], scores["indptr"]
    words = len(offset_V) - 1 if offset_V.ndim == 1 else -1
    if not isinstance(vocabulary, dict) or not all(
        type(number) is int and 0 <= number < words for number in vocabulary.values()
    ):
        raise ValueError(f"{folder / _VOCABULARY} does not fit {_INDPTR}: words must be numbered below {words}")
    rises = words >= 0 and offset_V[0] == 0 and offset_V[-1] == len(score_T) and bool((np.diff(offset_V) >= 0).all())
    if offset_V.dtype.kind != "i" or not rises:
        raise ValueError(f"{folder / _INDPTR} must rise from 0 to {len(score_T)}")
    if score_T.dtype != np.float32 or score_T.ndim != 1 or not bool(np.isfinite(score_T.sum(dtype=np.float64))):
        raise ValueError(f"{folder / _DATA} does not hold finite float32 scores")
    if passage_T.dtype.kind != "i" or passage_T.shape != score_T.shape:
        raise ValueError(f"{folder / _INDICES} does not hold a passage for every score")
    if len(passage_T) and not (passage_T.min() >= 0 and passage_T.max() < num_passages):
        raise ValueError(f"{folder / _INDICES} names passages outside the {num_passages} of the store")
