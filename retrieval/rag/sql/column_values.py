"""What stands in the columns of a table, so that wordings of a question find it.

People write "sci fi by rowling", the table holds ``science-fiction`` and ``J.K. Rowling``. The values of every text
column are kept beside the table; stretches of a question are compared with them, and the values found go into the
prompt or become filters (relational database augmented large language model, arXiv 2407.15071). Compared are character
trigrams, weighted by TF-IDF; with an encoder, the meaning as well.

Suffixes: V = values, G = trigrams, S = stretches of the question, K = dimensions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
import scipy.sparse
from numpy.typing import NDArray

from recsys.retrieval.rag.words import STOP_WORDS, words

__all__ = ["ColumnValues", "TextColumn", "ValueMatch"]

_SEPARATORS = (" > ", "|", ";", ",")
_SPLIT_SHARE = 0.2
"""Share of the values that must hold a separator for the column to be one of lists."""
_LONGEST_VALUE = 80
"""Characters; a column whose values are mostly longer holds texts, not values."""
_LONGEST_STRETCH = 6
"""Words of a question that are compared with values together."""
_MOST_WORDS = 60
"""Words of a question that are looked at."""
_MOST_ENCODED = 5_000
"""Values of a column that are compared by meaning as well."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")

Floats = NDArray[np.float32]


class Encoder(Protocol):
    """Such as :class:`recsys.tokenizers.text_encoder.TextEncoder`."""

    def encode(self, texts: Sequence[str | None]) -> Floats:
        """[N, K] vectors of texts."""
        ...


@dataclass(frozen=True, slots=True)
class TextColumn:
    """How a column holds its values."""

    name: str
    separators: tuple[str, ...]
    """Between the values of one cell, where a cell is a text that lists several; split by one after the other."""
    listed: bool
    """Whether a cell is a list."""
    values: tuple[str, ...]
    """Distinct ones, the most frequent first."""
    counts: tuple[int, ...]
    """Items that have each value."""
    truncated: bool
    """There are more values than are kept."""
    names_items: bool
    """Whether most values belong to one item alone, as titles do: such a column names items and groups none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueMatch:
    """A value that a stretch of the question may mean."""

    column: str
    value: str
    score: float
    """Cosine, 1 for the same letters."""
    words: str
    """The stretch, as it stands in the question."""
    begin: int
    end: int
    """Its place: characters of the question."""
    share: float
    """Of the items that have the value."""
    rare_word: bool
    """The stretch is one word of the value that hardly any other value has, as a family name is."""


class ColumnValues:
    """The values of an item table's text columns, searchable by wording."""

    def __init__(self, columns: Sequence[TextColumn], *, num_rows: int, encoder: Encoder | None = None) -> None:
        """See :meth:`of`."""
        self.columns = {column.name: column for column in columns}
        self.num_rows, self._encoder = num_rows, encoder
        self._of = [(column.name, place) for column in columns for place in range(len(column.values))]
        texts = [_folded(value) for column in columns for value in column.values]
        self._exact: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            self._exact.setdefault(text, []).append(row)
        self._gram_of: dict[str, int] = {}
        rows, places = list[int](), list[int]()
        for row, text in enumerate(texts):
            for gram in _grams(text):
                rows.append(row)
                places.append(self._gram_of.setdefault(gram, len(self._gram_of)))
        shape = (len(texts), max(1, len(self._gram_of)))
        counts_VG = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, places)), shape=shape)  # equal places add up
        document_counts_G = np.bincount(counts_VG.indices, minlength=shape[1])
        self._idf_G = np.log((1 + len(texts)) / (1 + document_counts_G)) + 1
        self._unknown_idf = math.log(1 + len(texts)) + 1
        weighted = counts_VG.multiply(self._idf_G[None, :]).tocsr()
        self._values_VG = scipy.sparse.diags(1 / _lengths(weighted)) @ weighted
        self._word_counts = Counter(
            word
            for (name, _), text in zip(self._of, texts, strict=True)
            if not self.columns[name].names_items
            for word in set(text.split())
        )
        self._encoded: list[int] = []
        self._vectors_VK: Floats | None = None
        if encoder is not None and texts:
            at = 0
            for column in columns:
                if not column.names_items:
                    self._encoded += range(at, at + min(len(column.values), _MOST_ENCODED))
                at += len(column.values)
            self._vectors_VK = _unit(encoder.encode([texts[row] for row in self._encoded])) if self._encoded else None

    @classmethod
    def of(
        cls,
        items: pl.DataFrame,
        *,
        columns: Iterable[str] | None = None,
        max_values: int = 20_000,
        encoder: Encoder | None = None,
    ) -> ColumnValues:
        """Read a table.

        Args:
            items: texts and lists of texts are looked at; the column ``text``, columns of other long texts, addresses
                and codes of one item each are left out.
            columns: only these.
            max_values: of a column, the most frequent first.
            encoder: compares by meaning as well; its time is paid here once for the values and once a question.
        """
        names = [name for name in items.columns if name != "text"] if columns is None else list(columns)
        found = [column for name in names if (column := _column(items[name], max_values)) is not None]
        return cls(found, num_rows=len(items), encoder=encoder)

    def match(
        self, question: str, *, most: int = 5, least: float = 0.6, least_meaning: float = 0.75
    ) -> list[ValueMatch]:
        """Values that the question may mean, best first.

        Args:
            question: its first 60 words are looked at.
            most: values of each column.
            least: cosine of trigrams.
            least_meaning: cosine of the encoder's vectors.
        """
        stretches = _stretches(question)
        if not stretches or not self._of:
            return []
        texts = [_folded(question[begin:end]) for begin, end in stretches]
        score_SV = (self._rows(texts) @ self._values_VG.T).tocoo()
        best: dict[int, tuple[float, int]] = {}
        keep = score_SV.data >= least
        for s, v, score in zip(score_SV.row[keep], score_SV.col[keep], score_SV.data[keep], strict=True):
            _better(best, int(v), float(score), int(s), stretches)
        for s, text in enumerate(texts):
            for v in self._exact.get(text, ()):
                _better(best, v, 1.0, s, stretches)
        if self._vectors_VK is not None and self._encoder is not None:
            meaning_SV = _unit(self._encoder.encode(texts)) @ self._vectors_VK.T
            for s, place in zip(*np.nonzero(meaning_SV >= least_meaning), strict=True):
                _better(best, self._encoded[int(place)], float(meaning_SV[s, place]), int(s), stretches)
        matches = [self._match(question, stretches[s], v, score) for v, (score, s) in best.items()]
        matches.sort(key=lambda match: (-match.score, match.begin - match.end, -match.share, match.column, match.value))
        kept, counts = [], Counter[str]()
        for match in matches:
            counts[match.column] += 1
            if counts[match.column] <= most:
                kept.append(match)
        return kept

    def known(self, column: str, value: str) -> str | None:
        """The value of a column that a text means, in the column's own spelling; None where there is none.

        Equal letters whatever their case, accents and dashes come first, then trigrams of cosine 0.75 and more.
        """
        there = self.columns.get(column)
        if there is None:
            return None
        rows = [row for row in self._exact.get(_folded(value), ()) if self._of[row][0] == column]
        if rows:
            same = [row for row in rows if there.values[self._of[row][1]] == value]
            return there.values[self._of[(same or rows)[0]][1]]
        scores = (self._rows([_folded(value[:200])]) @ self._values_VG.T).tocoo()
        near = [(-s, v) for v, s in zip(scores.col, scores.data, strict=True) if s >= 0.75 and self._of[v][0] == column]
        return there.values[self._of[min(near)[1]][1]] if near else None

    def _match(self, question: str, stretch: tuple[int, int], row: int, score: float) -> ValueMatch:
        name, place = self._of[row]
        column, (begin, end) = self.columns[name], stretch
        return ValueMatch(
            column=name,
            value=column.values[place],
            score=min(1.0, score),
            words=question[begin:end],
            begin=begin,
            end=end,
            share=column.counts[place] / max(1, self.num_rows),
            rare_word=self._is_rare(column.values[place], _folded(question[begin:end])),
        )

    def _is_rare(self, value: str, stretch: str) -> bool:
        return len(stretch) >= 4 and stretch in _folded(value).split() and self._word_counts[stretch] <= 2

    def _rows(self, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        """[N, G] unit rows of TF-IDF; trigrams that no value has count for the length alone."""
        indices, data, starts = list[int](), list[float](), [0]
        for text in texts:
            weights, squared = list[tuple[int, float]](), 0.0
            for gram, count in Counter(_grams(text)).items():
                place = self._gram_of.get(gram, -1)
                weight = count * (self._unknown_idf if place < 0 else float(self._idf_G[place]))
                squared += weight * weight
                if place >= 0:
                    weights.append((place, weight))
            length = math.sqrt(squared) or 1.0
            indices += [place for place, _ in weights]
            data += [weight / length for _, weight in weights]
            starts.append(len(indices))
        shape = (len(texts), max(1, len(self._gram_of)))
        return scipy.sparse.csr_matrix(
            (np.array(data), np.array(indices, dtype=np.int64), np.array(starts)), shape=shape
        )


def _lengths(rows: scipy.sparse.csr_matrix) -> NDArray[np.float64]:
    squared = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
    length: NDArray[np.float64] = np.sqrt(np.maximum(squared, 1e-12))
    return length


def _better(
    best: dict[int, tuple[float, int]], row: int, score: float, s: int, stretches: Sequence[tuple[int, int]]
) -> None:
    """The better stretch for a value: the higher score, then the longer one."""
    known = best.get(row)
    length = stretches[s][1] - stretches[s][0]
    if known is None or (score, length) > (known[0], stretches[known[1]][1] - stretches[known[1]][0]):
        best[row] = (score, s)


def _folded(text: str) -> str:
    """Lower letters and digits with single spaces; accents and plurals are gone.

    >>> _folded("Science-Fiction & Cafés")
    'science fiction and cafe'
    """
    plain = unicodedata.normalize("NFKD", text.casefold().replace("&", " and "))
    return " ".join(words("".join(c for c in plain if not unicodedata.combining(c))))


def _grams(text: str) -> list[str]:
    padded = f" {text} "
    return [padded[at : at + 3] for at in range(len(padded) - 2)]


def _stretches(question: str) -> list[tuple[int, int]]:
    """(begin, end) of all runs of a few words that hold a word with a meaning."""
    found = [(match.start(), match.end()) for match in _WORD.finditer(question)][:_MOST_WORDS]
    dull = [question[begin:end].casefold() in STOP_WORDS for begin, end in found]
    return [
        (found[low][0], found[high][1])
        for low in range(len(found))
        for high in range(low, min(len(found), low + _LONGEST_STRETCH))
        if not dull[low] and not dull[high]
    ]


def _unit(vectors_NK: Floats) -> Floats:
    length = np.linalg.norm(vectors_NK, axis=1, keepdims=True)
    return vectors_NK / np.maximum(length, 1e-12)


def _column(series: pl.Series, max_values: int) -> TextColumn | None:
    """How a column holds values, or None where it holds none that a question could name."""
    kind, name = series.dtype, series.name
    listed = isinstance(kind, pl.List)
    inner = kind.inner if isinstance(kind, pl.List) else kind
    if name == "item_id" or inner not in (pl.String, pl.Categorical, pl.Enum):
        return None
    cells = series.drop_nulls()
    if listed:
        pieces, separators = cells.explode().drop_nulls().cast(pl.String), tuple[str, ...]()
    else:
        cells = cells.cast(pl.String)
        cells = cells.filter(cells != "")
        if not len(cells) or _reads_as_code(cells):
            return None
        separators, pieces = _split(cells)
    pieces = pieces.filter((pieces != "") & (pieces.str.len_chars() <= 4 * _LONGEST_VALUE))
    if not len(pieces) or float(pieces.str.len_chars().median() or 0) > _LONGEST_VALUE:  # type: ignore[arg-type]
        return None
    counted = pieces.value_counts(name="count").sort(["count", pieces.name], descending=[True, False])
    values, counts = counted[pieces.name].to_list(), counted["count"].to_list()
    return TextColumn(
        name=name,
        separators=separators,
        listed=listed,
        values=tuple(values[:max_values]),
        counts=tuple(counts[:max_values]),
        truncated=len(values) > max_values,
        names_items=len(values) > 0.5 * sum(counts),
    )


def _reads_as_code(cells: pl.Series) -> bool:
    """Addresses, and single words with digits that belong to one item each."""
    head = cells.head(1_000)
    if float(head.str.contains("://", literal=True).mean() or 0) > 0.5:  # type: ignore[arg-type]
        return True
    coded = float(head.str.contains(r"^\S*\d\S*$").mean() or 0)  # type: ignore[arg-type]
    return coded > 0.5 and cells.n_unique() > 0.9 * len(cells)


def _split(cells: pl.Series) -> tuple[tuple[str, ...], pl.Series]:
    """Separators of a column, and its values apart: the first that leaves values which recur, and further ones that
    leave no more different values."""
    separators, pieces = tuple[str, ...](), cells
    for separator in _SEPARATORS:
        apart = _apart(pieces, separator)
        if len(apart) == len(pieces):
            continue
        if separators:
            fits = apart.n_unique() <= pieces.n_unique()
        else:
            held = float(cells.str.contains(separator, literal=True).mean() or 0)  # type: ignore[arg-type]
            spelled = float(apart.str.count_matches(r"\S+").mean() or 0)  # type: ignore[arg-type]
            fits = held >= _SPLIT_SHARE and apart.n_unique() <= 0.5 * len(apart) and spelled <= 5
        if fits:
            separators, pieces = (*separators, separator), apart
    return separators, pieces


def _apart(cells: pl.Series, separator: str) -> pl.Series:
    split = cells.str.split(separator).explode().str.strip_chars()
    return split.filter(split != "")
