"""Passages that can be searched by words, by meaning and by learned weights, the orders fused.

Suffixes: P = passages, N = given passages, Q = questions, K = dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from recsys.errors import InputError, shown
from recsys.index.registry import build_index
from recsys.retrieval.rag.fused_ranks import K, fused_ranks
from recsys.retrieval.rag.keyword_index import KeywordIndex
from recsys.retrieval.rag.passage import FoundPassage, Passage, plain_text
from recsys.retrieval.rag.passage_encoders import Encoder, needed, sparse_encoder_of, text_encoder, unit_rows
from recsys.retrieval.rag.passage_files import load_stock, save_stock
from recsys.retrieval.rag.passage_stock import PassageStock, best_rows, check_item_ids, rows_tensor
from recsys.retrieval.rag.selection import text_similarity

__all__ = ["RETRIEVERS", "PassageStore"]

RETRIEVERS = ("bm25", "dense", "sparse")
_DEPTH = 100
"""Places of each retriever's list that are fused, unless more passages are asked for."""
_ENCODED_AT_ONCE = 256
"""Texts between two steps of a progress bar."""
_MOST_QUESTION = 4000
"""Characters of a question that are searched for."""


class PassageStore:
    """Searches passages. Any thread may search while another adds: a search sees the store before or after a change."""

    def __init__(
        self, stock: PassageStock, *, encoder: Encoder | None = None, sparse: Encoder | None = None,
        made_with: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """See :meth:`build` and :meth:`load`."""
        self._stock, self._encoder, self._sparse = stock, encoder, sparse
        self._made_with = dict(made_with or {})
        self._lock = threading.Lock()

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        encoder: Path | str | None = None,
        sparse_encoder: Path | str | None = None,
        index: str = "exact",
        device: str = "cpu",
        advance: Callable[[int], None] | None = None,
    ) -> PassageStore:
        """Read all passages once.

        Args:
            passages: of :func:`~recsys.retrieval.rag.passages_of.item_passages` and ``document_passages``, or made by
                hand; of equal ids the first is kept. None at all is a store that finds nothing.
            encoder: folder of a sentence-transformers model, for search by meaning; None = without.
            sparse_encoder: folder of a SPLADE-like model of sentence-transformers; None = without.
            index: kind of the vector index, one of :data:`recsys.index.registry.INDEX_KINDS`.
            device: where texts are encoded.
            advance: told how many more texts have got the vectors of ``encoder``.

        Raises:
            InputError: a package is missing (the line says which extra to install), an encoder cannot be read, or
                item ids are of several types.
        """
        unique = tuple({passage.id: passage for passage in reversed(list(passages))}.values())[::-1]
        check_item_ids(unique)
        dense = None if encoder is None else text_encoder(encoder, device)
        sparse = None if sparse_encoder is None else sparse_encoder_of(sparse_encoder, device)
        made_with = {
            "index_kind": index,
            "encoder": None if dense is None else {"name": dense.name, "sha256": dense.hash},
            "sparse_encoder": None if sparse is None else {"name": sparse.name, "sha256": sparse.hash},
        }
        texts = [passage.text for passage in unique]
        vectors_PK = None if dense is None else _encoded(dense, texts, advance)
        try:
            # FAISS wants something to learn from; there is nothing to search in an empty store anyway.
            found = None if vectors_PK is None else build_index(index if texts else "exact", vectors_PK)
        except ValueError as error:
            raise InputError(str(error)) from None
        stock = PassageStock(
            unique, np.zeros(len(unique), dtype=np.bool_), KeywordIndex.build(texts), found, vectors_PK,
            None if sparse is None else sparse.model.encode(texts),
        )  # fmt: skip
        return cls(stock, encoder=dense, sparse=sparse, made_with=made_with)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        encoder: Path | str | None = None,
        sparse_encoder: Path | str | None = None,
        device: str = "cpu",
    ) -> PassageStore:
        """Open a saved store; large parts are mapped, not read.

        Args:
            encoder, sparse_encoder: folders of the models that the store was built with; without one, its retriever
                is not there.

        Raises:
            InputError: a part is missing or damaged, or a model is another than the store was built with.
        """
        stock, made_with = load_stock(Path(path))
        dense = None if encoder is None else text_encoder(encoder, device)
        sparse = None if sparse_encoder is None else sparse_encoder_of(sparse_encoder, device)
        for given, key in ((dense, "encoder"), (sparse, "sparse_encoder")):
            known = made_with.get(key)
            if given is not None and not (isinstance(known, dict) and known.get("sha256") == given.hash):
                was = f"with {known.get('name')}" if isinstance(known, dict) else "without one"
                raise InputError(
                    f"{path} was built {was}, not with the {key.replace('_', ' ')} {given.name}; give that model's "
                    "folder, or build the store again"
                )
        return cls(stock, encoder=dense, sparse=sparse, made_with=made_with)

    def save(self, path: Path | str) -> None:
        """Write a folder; an older store there is replaced as a whole, anything else is left alone.

        Raises:
            InputError: the path holds something else.
        """
        header = {key: self._made_with.get(key) for key in ("index_kind", "encoder", "sparse_encoder")}
        save_stock(self._stock, Path(path), header)

    # -- what is in it ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int((~self._stock.gone_P).sum())

    @property
    def retrievers(self) -> tuple[str, ...]:
        """Names to use in ``retrievers=``."""
        there = (True, self._encoder is not None, self._sparse is not None)
        return tuple(name for name, has in zip(RETRIEVERS, there, strict=True) if has)

    @property
    def without_model(self) -> tuple[str, ...]:
        """Retrievers that the store holds vectors for, and that are not there because their model was not given."""
        stock = self._stock
        left = (False, stock.vectors_PK is not None, stock.sparse_PV is not None)
        there = self.retrievers
        return tuple(name for name, held in zip(RETRIEVERS, left, strict=True) if held and name not in there)

    @property
    def passages(self) -> list[Passage]:
        """All that a search may return, in the order of their arrival."""
        stock = self._stock
        return [passage for passage, gone in zip(stock.passages, stock.gone_P.tolist(), strict=True) if not gone]

    def of_items(self, item_ids: Iterable[Any]) -> list[Passage]:
        """The passages about some items, item by item."""
        stock = self._stock
        rows = [row for item_id in dict.fromkeys(item_ids) for row in stock.rows_of_item.get(item_id, [])]
        return [stock.passages[row] for row in rows if not stock.gone_P[row]]

    def add(self, passages: Iterable[Passage]) -> int:
        """Add what is not there yet, and give the number of passages that searches find in addition.

        Only new texts are encoded; words are counted again over all.

        Raises:
            InputError: item ids of another type, or the store was loaded without a model that it needs.
        """
        with self._lock:
            stock = self._stock
            given = {passage.id: passage for passage in passages}
            back = [stock.row_of[name] for name in given if name in stock.row_of and stock.gone_P[stock.row_of[name]]]
            new = [passage for name, passage in given.items() if name not in stock.row_of]
            check_item_ids([*stock.passages, *new])
            gone_P = np.concatenate([stock.gone_P, np.zeros(len(new), dtype=np.bool_)])
            gone_P[back] = False
            if not new:
                self._stock = replace(stock, gone_P=gone_P)
                return len(back)
            whole, texts = (*stock.passages, *new), [passage.text for passage in new]
            vectors_PK, index, sparse_PV = stock.vectors_PK, stock.index, stock.sparse_PV
            if vectors_PK is not None and index is not None:
                more_NK = unit_rows(needed(self._encoder, "encoder"), texts)
                moved_N = torch.arange(len(vectors_PK), len(whole))
                was_empty = not len(vectors_PK)
                vectors_PK = torch.cat([vectors_PK, more_NK])
                kind = str(self._made_with.get("index_kind") or "exact")
                index = build_index(kind, vectors_PK) if was_empty else index.moved(vectors_PK, moved_N)
            if sparse_PV is not None:
                more = needed(self._sparse, "sparse_encoder").model.encode(texts)
                sparse_PV = scipy.sparse.vstack([sparse_PV, more], format="csr")
            keywords = KeywordIndex.build([passage.text for passage in whole])
            self._stock = PassageStock(whole, gone_P, keywords, index, vectors_PK, sparse_PV)
            return len(new) + len(back)

    def remove(
        self, *, ids: Iterable[str] = (), item_ids: Iterable[Any] = (), sources: Iterable[str] = ()
    ) -> int:  # fmt: skip
        """Take passages out of every later search, and give how many there were; unknown names are none.

        They stay in the files and in the word statistics; build the store again where their text has to go for good.
        """
        with self._lock:
            stock, named = self._stock, set(sources)
            rows = [stock.row_of[name] for name in ids if name in stock.row_of]
            rows += [row for item_id in item_ids for row in stock.rows_of_item.get(item_id, [])]
            rows += [row for row, passage in enumerate(stock.passages) if passage.source in named] if named else []
            gone_P = stock.gone_P.copy()
            gone_P[rows] = True
            self._stock = replace(stock, gone_P=gone_P)
            return int(gone_P.sum() - stock.gone_P.sum())

    # -- search ----------------------------------------------------------------------------------------------------

    def search(self, question: str, k: int = 10, **settings: Any) -> list[FoundPassage]:
        """The ``k`` best passages for one question; see :meth:`search_batch`."""
        return self.search_batch([question], k, **settings)[0]

    def search_batch(
        self,
        questions: Sequence[str],
        k: int = 10,
        *,
        retrievers: Sequence[str] | None = None,
        item_ids: Iterable[Any] | None = None,
        sources: Iterable[str] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> list[list[FoundPassage]]:
        """The best passages for each question, best first; fewer, or none, where fewer are found.

        Ranks are fused as :func:`~recsys.retrieval.rag.fused_ranks.fused_ranks` says, ties included.

        Args:
            questions: any texts; only their first 4,000 characters count, and a blank one finds nothing.
            k: passages per question.
            retrievers: of :attr:`retrievers`; None = all of them.
            item_ids: only passages about these items; None = all passages, empty = none.
            sources: only passages of these sources.
            weights: of the retrievers in the sum of reciprocal ranks, 1 each where not named.

        Raises:
            InputError: an unknown retriever, or k below 1.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k must be a positive integer, got {shown(k)}")
        chosen = self.retrievers if retrievers is None else tuple(retrievers)
        for name in chosen:
            if name not in self.retrievers:
                raise InputError(
                    f"there is no retriever {shown(name)} in this store; it has {', '.join(self.retrievers)}"
                )
        stock = self._stock
        asked = [plain_text(question[:_MOST_QUESTION]) for question in questions]
        allowed_P = stock.allowed(
            None if item_ids is None else list(item_ids), None if sources is None else list(sources)
        )
        depth = max(_DEPTH, k)
        found: list[dict[str, dict[int, float]]] = [{} for _ in asked]
        if asked and len(stock.passages) and (allowed_P is None or allowed_P.any()):
            for name in chosen:
                search = {"bm25": self._by_words, "dense": self._by_meaning, "sparse": self._by_weights}[name]
                for lists, hits in zip(found, search(stock, asked, depth, allowed_P), strict=True):
                    lists[name] = hits
        return [_fused(stock, lists, k, weights) for lists in found]

    def similarity(self, passages: Sequence[Passage]) -> NDArray[np.float64]:
        """[N, N] how much passages say the same, from 0 to 1: cosine of their vectors where the store has vectors of
        all of them, else of their words."""
        stock = self._stock
        rows = [stock.row_of.get(passage.id, -1) for passage in passages]
        if stock.vectors_PK is None or min(rows, default=-1) < 0:
            return text_similarity([passage.text for passage in passages])
        vector_NK = stock.vectors_PK[rows].double().numpy()
        cosine: NDArray[np.float64] = np.clip(vector_NK @ vector_NK.T, 0.0, 1.0)
        return cosine

    def _by_words(
        self, stock: PassageStock, asked: Sequence[str], depth: int, allowed_P: NDArray[np.bool_] | None
    ) -> list[dict[int, float]]:
        return [_listed(stock.keywords.scores(question), depth, allowed_P) for question in asked]

    def _by_weights(
        self, stock: PassageStock, asked: Sequence[str], depth: int, allowed_P: NDArray[np.bool_] | None
    ) -> list[dict[int, float]]:
        assert self._sparse is not None and stock.sparse_PV is not None
        with self._sparse.lock:
            asked_QV = self._sparse.model.encode(asked, question=True)
        score_QP = (asked_QV @ stock.sparse_PV.T).toarray()
        return [
            _listed(score_P, depth, allowed_P) if question.strip() else {}
            for question, score_P in zip(asked, score_QP, strict=True)
        ]

    def _by_meaning(
        self, stock: PassageStock, asked: Sequence[str], depth: int, allowed_P: NDArray[np.bool_] | None
    ) -> list[dict[int, float]]:
        assert self._encoder is not None and stock.index is not None
        vector_QK = unit_rows(self._encoder, asked)
        allow_N = None if allowed_P is None else rows_tensor(allowed_P)
        hits = stock.index.search(vector_QK, min(depth, len(stock.passages)), allow_N=allow_N)
        lists: list[dict[int, float]] = []
        for question, ids, scores in zip(asked, hits.ids_QK.tolist(), hits.scores_QK.tolist(), strict=True):
            pairs = {row: score for row, score in zip(ids, scores, strict=True) if row >= 0}
            lists.append(pairs if question.strip() else {})
        return lists


def _encoded(encoder: Encoder, texts: Sequence[str], advance: Callable[[int], None] | None) -> torch.Tensor:
    """[P, K] unit rows, in one go where nobody wants to be told how far it came."""
    if advance is None or not texts:
        return unit_rows(encoder, texts)
    parts = []
    for low in range(0, len(texts), _ENCODED_AT_ONCE):
        parts.append(unit_rows(encoder, texts[low : low + _ENCODED_AT_ONCE]))
        advance(len(parts[-1]))
    return torch.cat(parts)


def _listed(score_P: NDArray[np.float32], depth: int, allowed_P: NDArray[np.bool_] | None) -> dict[int, float]:
    """Row -> score, best first."""
    kept_P = score_P if allowed_P is None else np.where(allowed_P, score_P, np.float32(0))
    return {row: float(kept_P[row]) for row in best_rows(kept_P, depth)}


def _fused(
    stock: PassageStock, lists: Mapping[str, Mapping[int, float]], k: int, weights: Mapping[str, float] | None
) -> list[FoundPassage]:
    ranks = {name: {row: rank for rank, row in enumerate(hits, start=1)} for name, hits in lists.items()}
    fused = fused_ranks({name: list(hits) for name, hits in lists.items()}, k=K, weights=weights)
    return [
        FoundPassage(
            passage=stock.passages[row],
            score=score,
            ranks={name: of[row] for name, of in ranks.items() if row in of},
            scores={name: of[row] for name, of in lists.items() if row in of},
        )
        for row, score in fused[:k]
    ]
