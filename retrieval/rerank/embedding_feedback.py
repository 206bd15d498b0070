"""Embedding feedback: a user vector refined by the top of the list, scored against stored item vectors.

Without a trained head this is pseudo-relevance feedback in the space of the item vectors (Rocchio): the user's vector
moves towards the mean of the best candidates. With one (:class:`FeedbackHead`), history and best candidates are read in
every space and relation that the bundle holds, as E2Rank (arXiv 2510.22733) reads a list by one embedding. No language
model runs, and no encoder runs over a candidate.

Suffixes: B = requests, K = candidates, N = feedback items, D = width, U = features of a user.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import History
from recsys.retrieval.list_features import ListRows
from recsys.retrieval.rerank.feedback_features import FeedbackFeatures
from recsys.retrieval.rerank.feedback_head import FeedbackHead
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.reranker import Reranker
from recsys.retrieval.rerank.result import Faults, RerankResult

__all__ = ["EmbeddingFeedbackReranker"]

_BATCH = 256
_BETA = 0.2
"""How far a user's vector moves without a trained head; on Amazon Toys and goodbooks no value changes much."""
_FEEDBACK = 10


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request in the bundle's terms."""

    history: History
    at: int
    surface: int
    user_K: NDArray[np.float32]
    numbers: list[int]
    """Of the candidates, -1 for what the bundle does not know."""


class EmbeddingFeedbackReranker(Reranker):
    """Orders by the dense score of a bundle and what feedback adds to it; the order and scores given change nothing.

    Args:
        bundle: whose users, vectors and item graph are read.
        head: trained, or its folder; None = feedback without training.
        training_only: transitions of training events alone, as validation and test must.
        beta: without a head, how much of the mean of the best candidates is added to the user's vector.

    Raises:
        InputError: the head's folder cannot be read, or it belongs to another bundle.
    """

    name = "embedding-feedback"

    def __init__(
        self,
        bundle: Bundle,
        head: FeedbackHead | Path | str | None = None,
        *,
        training_only: bool = False,
        beta: float = _BETA,
    ) -> None:
        self.head = FeedbackHead.load(head) if isinstance(head, (str, Path)) else head
        text_IV = None if self.head is None else self.head.text_IV
        self.features = FeedbackFeatures(bundle, training_only=training_only, text_IV=text_IV)
        self.bundle, self.beta = bundle, beta
        if self.head is not None:
            self.head.check_bundle(bundle.model_hash, self.features.names, bundle.path)

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; a candidate that the bundle does not know keeps its place.

        Raises:
            InputError: an event names an action that the bundle does not know, or features of a user are of another
                model.
        """
        asked = [self._asked(request) for request in requests]
        return await asyncio.to_thread(self._rerank, list(requests), asked, deadline)

    def _asked(self, request: RerankRequest) -> _Asked:
        words = self.bundle.vocabulary
        try:
            history = words.history(list(request.events))
        except InputError as error:
            raise InputError(f"events of a request to rerank: {error}") from None
        at = request.at if request.at is not None else int(history.timestamp[-1]) if len(history) else None
        numbers: list[int] = words.items.index(list(request.ids)).tolist() if request.ids else []
        user_K = np.zeros(self.bundle.model.config.user_dim, dtype=np.float32)
        if request.user_K is not None:
            if np.shape(request.user_K) != user_K.shape:
                raise InputError(
                    f"user_K of a request to rerank has shape {np.shape(request.user_K)}, the model of "
                    f"{self.bundle.path} reads {user_K.shape}; encode the user with that bundle"
                )
            user_K = np.asarray(request.user_K, dtype=np.float32)
        return _Asked(
            history, words.max_timestamp if at is None else at, words.surface_index(request.surface), user_K, numbers
        )

    def _rerank(self, requests: list[RerankRequest], asked: list[_Asked], deadline: float | None) -> list[RerankResult]:
        results: list[RerankResult | None] = [None] * len(requests)
        # Lists of like length, and histories of like length, share a batch.
        order = sorted(range(len(requests)), key=lambda row: (len(asked[row].numbers), len(asked[row].history)))
        for low in range(0, len(order), _BATCH):
            rows = order[low : low + _BATCH]
            start = time.monotonic()
            if deadline is not None and start >= deadline:
                for row in rows:
                    note = "the deadline passed before this list was looked at"
                    results[row] = RerankResult.unchanged(requests[row].ids, note, faults=Faults(failed=1))
                continue
            # Candidates stand in the order of their numbers, so that the order given cannot decide even a rounding.
            numbers = [sorted({number for number in asked[row].numbers if number >= 0}) for row in rows]
            item_BK = torch.full((len(rows), max(1, max(map(len, numbers)))), -1, dtype=torch.int64)
            for place, known in enumerate(numbers):
                item_BK[place, : len(known)] = torch.tensor(known, dtype=torch.int64)
            at_B = torch.tensor([asked[row].at for row in rows], dtype=torch.int64)
            surface_B = torch.tensor([asked[row].surface for row in rows], dtype=torch.int64)
            user_BU = np.stack([asked[row].user_K for row in rows])
            histories = [asked[row].history for row in rows]
            score_BK = self.scores(histories, item_BK, at_B, surface_B, user_BU).cpu().numpy()
            usage = Usage(calls=1, seconds=(time.monotonic() - start) / len(rows))
            for place, row in enumerate(rows):
                score_of = dict(zip(numbers[place], score_BK[place].tolist(), strict=False))
                results[row] = _result(requests[row], asked[row].numbers, score_of, usage)
        return [result for result in results if result is not None]

    @torch.inference_mode()
    def scores(
        self,
        histories: Sequence[History],
        item_BK: Tensor,
        at_B: Tensor,
        surface_B: Tensor | None = None,
        user_BU: NDArray[np.float32] | None = None,
    ) -> Tensor:
        """[B, K] float32 refined scores of candidates in internal numbers; -inf at padded places (-1).

        Args:
            histories: of B users. item_BK: [B, K] int64, no item twice in a row. at_B: [B] int64 times.
            surface_B: [B] int64; None = unknown. user_BU: [B, U] features of the users; None = unknown.
        """
        rows = self.features(histories, item_BK, at_B, surface_B, user_BU)
        if self.head is None:
            return rows.score_BK + self._rocchio(rows, item_BK.to(rows.score_BK.device))
        head = self.head.head
        if head.weight == 0.0:
            return rows.score_BK
        return rows.score_BK + head.weight * head.added(rows.feature_BKF.cpu()).to(rows.score_BK.device)

    def _rocchio(self, rows: ListRows, item_BK: Tensor) -> Tensor:
        """[B, K] inner products with the weighted mean of the best candidates."""
        vector_BKD = self.bundle.vectors[item_BK.clamp_min(0)]
        best_BN, place_BN = rows.score_BK.topk(min(_FEEDBACK, item_BK.shape[1]), dim=1)
        weight_BN = best_BN.softmax(1).nan_to_num(0.0)
        mean_BD = (
            vector_BKD.gather(1, place_BN[..., None].expand(-1, -1, vector_BKD.shape[2])) * weight_BN[..., None]
        ).sum(1)
        return self.beta * (vector_BKD * mean_BD[:, None]).sum(-1)


def _result(request: RerankRequest, numbers: list[int], score_of: dict[int, float], usage: Usage) -> RerankResult:
    """Known candidates by score among the places of the known ones, equal scores by number; others where they stood."""
    known = [place for place, number in enumerate(numbers) if number >= 0]
    best = sorted(known, key=lambda place: (-score_of[numbers[place]], numbers[place]))
    ids = list(request.ids)
    for place, taken in zip(known, best, strict=True):
        ids[place] = request.ids[taken]
    if len(known) == len(numbers):
        scores = tuple(score_of[number] for number in numbers)
        return RerankResult(ids=tuple(ids), candidates=request.ids, scores=scores, usage=usage)
    note = f"{len(numbers) - len(known)} candidates are not in the bundle and keep their places"
    return RerankResult(ids=tuple(ids), candidates=request.ids, usage=usage, notes=(note,))
