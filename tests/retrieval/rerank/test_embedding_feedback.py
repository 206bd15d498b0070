"""Embedding feedback without a trained head, and what every head is checked for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import Event
from recsys.index.item_graph import TRANSITION
from recsys.index.pair_values import pair_values
from recsys.list_head import ListHead
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank import RerankItem, RerankRequest, RerankResult
from recsys.retrieval.rerank.embedding_feedback import EmbeddingFeedbackReranker
from recsys.retrieval.rerank.feedback_features import FeedbackFeatures
from recsys.retrieval.rerank.feedback_head import FeedbackHead


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


def request_of(*items: str, history: tuple[str, ...] = ("i3", "i7", "i1")) -> RerankRequest:
    events = [Event(item_id=item, actions="click", timestamp=1_700_000_000 + at) for at, item in enumerate(history)]
    return RerankRequest(candidates=[RerankItem(item_id=item) for item in items], events=events)


@pytest.fixture(scope="module")
def head(bundle: Bundle, random_list_head: Callable[..., ListHead]) -> FeedbackHead:
    """One of random weights."""
    return FeedbackHead(head=random_list_head(FeedbackFeatures(bundle).names), model_hash=bundle.model_hash)


CANDIDATES = ("i5", "i20", "i11", "i8", "i29", "i14", "i2")


def test_without_a_head_the_user_moves_towards_the_best(bundle: Bundle) -> None:
    request = request_of(*CANDIDATES)
    (result,) = EmbeddingFeedbackReranker(bundle, beta=0.7).rerank([request])
    words, features = bundle.vocabulary, FeedbackFeatures(bundle)
    item_BK = torch.from_numpy(words.items.index(list(request.ids)))[None]
    rows = features([words.history(list(request.events))], item_BK, torch.tensor([1_700_000_002]))
    vector_KD = bundle.vectors[item_BK[0]]
    mean_D = (rows.score_BK[0].softmax(0)[:, None] * vector_KD).sum(0)
    assert result.scores == pytest.approx((rows.score_BK[0] + 0.7 * vector_KD @ mean_D).tolist(), abs=1e-5)
    by_score = dict(zip(request.ids, result.scores or (), strict=True))
    assert list(result.ids) == sorted(by_score, key=lambda item: -by_score[item])


def test_surface_and_user_features_of_the_request_are_read(serving_worlds: tuple[Any, Any]) -> None:
    """Without feedback the order is that of retrieval, of whatever surface and user."""
    bundle = Bundle.open(serving_worlds[0].bundle)
    rec, reranker = Recommender(bundle), EmbeddingFeedbackReranker(bundle, beta=0.0)
    seen: list[RerankRequest] = []
    reranked = reranker.rerank_async

    async def noted(requests: Sequence[RerankRequest], **settings: Any) -> list[RerankResult]:
        seen.extend(requests)
        return await reranked(requests, **settings)

    reranker.rerank_async = noted  # type: ignore[method-assign]
    at, plain = 1_700_900_000, None
    for asked in ({}, {"surface": bundle.vocabulary.surfaces[-1]}, {"user_features": {"city": "Oslo"}}):
        page = rec.recommend("u2", k=8, at=at, **asked)
        rec.recommend("u2", k=8, at=at, reranker=reranker, **asked)
        (result,) = reranker.rerank([replace(seen[-1], candidates=seen[-1].candidates[:8])])
        assert list(result.ids) == page.item_ids
        assert result.scores == pytest.approx([hit.score for hit in page], abs=1e-5)
        plain = plain or result.scores
        assert (max(abs(a - b) for a, b in zip(result.scores or (), plain, strict=True)) > 1e-3) == bool(asked)
    (stored,) = reranker.rerank([replace(seen[0], candidates=seen[0].candidates[:8])])
    unknown = reranker.rerank([replace(seen[0], candidates=seen[0].candidates[:8], user_K=None)])[0]
    assert stored.scores != pytest.approx(unknown.scores, abs=1e-3), "the bundle knows the city of u2"
    with pytest.raises(InputError, match="user_K of a request to rerank"):
        reranker.rerank([replace(seen[0], user_K=np.zeros(99, dtype=np.float32))])


def test_what_is_given_first_changes_nothing(bundle: Bundle, head: FeedbackHead) -> None:
    request = request_of(*CANDIDATES)
    for reranker in (EmbeddingFeedbackReranker(bundle), EmbeddingFeedbackReranker(bundle, head)):
        (first,) = reranker.rerank([request])
        of_id = dict(zip(request.ids, first.scores or (), strict=True))
        assert len(set(of_id.values())) == len(CANDIDATES)
        for seed in range(10):
            mixed = random.Random(seed).sample(CANDIDATES, len(CANDIDATES))
            (result,) = reranker.rerank([request_of(*mixed)])
            assert result.ids == first.ids
            assert dict(zip(mixed, result.scores or (), strict=True)) == of_id


def test_a_batch_gives_what_each_gives_alone(bundle: Bundle, head: FeedbackHead) -> None:
    requests = [
        request_of(*CANDIDATES), request_of("i4"), request_of(), request_of("i9", "i6", history=()),
        request_of("i9", "i6", "i0", history=("i2",) * 30),
    ]  # fmt: skip
    reranker = EmbeddingFeedbackReranker(bundle, head)
    for together, request in zip(reranker.rerank(requests), requests, strict=True):
        (alone,) = reranker.rerank([request])
        assert together.ids == alone.ids and together.complete
        assert (together.scores or ()) == pytest.approx(alone.scores or (), abs=1e-4)
        assert all(score == score for score in alone.scores or ())


def test_unknown_candidates_keep_their_places(bundle: Bundle, head: FeedbackHead) -> None:
    reranker = EmbeddingFeedbackReranker(bundle, head)
    (known,) = reranker.rerank([request_of(*CANDIDATES)])
    (result,) = reranker.rerank([request_of("new", *CANDIDATES[:3], "newer", *CANDIDATES[3:])])
    assert result.ids[0] == "new" and result.ids[4] == "newer" and result.scores is None
    assert [item for item in result.ids if not item.startswith("new")] == list(known.ids)
    assert result.notes == ("2 candidates are not in the bundle and keep their places",)


def test_a_passed_deadline_keeps_the_order(bundle: Bundle) -> None:
    (result,) = EmbeddingFeedbackReranker(bundle).rerank([request_of(*CANDIDATES)], deadline=time.monotonic() - 1)
    assert result.ids == CANDIDATES and not result.complete and result.faults.failed == 1
    with pytest.raises(InputError, match="events of a request to rerank: .*'buy'"):
        event = Event(item_id="i1", actions="buy")
        EmbeddingFeedbackReranker(bundle).rerank([replace(request_of("i1"), events=[event])])


def test_features_are_sums_over_history_and_best_candidates(bundle: Bundle) -> None:
    features = FeedbackFeatures(bundle)
    words = bundle.vocabulary
    history = words.history(list(request_of().events))
    item_BK = torch.from_numpy(words.items.index(["i5", "i20", "i11"]))[None]
    rows = features([history], item_BK, torch.tensor([1_700_000_002]))
    newest = torch.from_numpy(history.item[::-1].copy())

    def column(name: str) -> list[float]:
        return [float(value) for value in rows.feature_BKF[0, :, features.names.index(name)]]

    unit_ID = torch.nn.functional.normalize(bundle.vectors, dim=1)
    cosine_KL = unit_ID[item_BK[0]] @ unit_ID[newest].T
    assert column("retrieval vectors: newest") == pytest.approx(cosine_KL[:, 0].tolist(), abs=1e-5)
    assert column("retrieval vectors: mean") == pytest.approx(cosine_KL.mean(1).tolist(), abs=1e-5)
    expected = cosine_KL @ torch.tensor([1.0, 0.7, 0.49])
    assert column("retrieval vectors: fast") == pytest.approx(expected.tolist(), abs=1e-5)
    place = bundle.graph_now.relations.index(TRANSITION)
    f_K = [
        max(float(pair_values(bundle.graph_now, newest[None, at], item[None])[0, place]) for at in range(3))
        for item in item_BK[0]
    ]
    assert column(f"relation {TRANSITION}: most") == pytest.approx(f_K, abs=1e-5)
    # Of the candidates, each is compared with the others alone.
    cosine_KK = (unit_ID[item_BK[0]] @ unit_ID[item_BK[0]].T).fill_diagonal_(0.0)
    weight_KK = rows.score_BK[0].softmax(0).expand(3, 3).clone().fill_diagonal_(0.0)
    expected = (cosine_KK * weight_KK).sum(1) / weight_KK.sum(1)
    assert column("retrieval vectors: feedback") == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_saved_head_gives_the_same(bundle: Bundle, head: FeedbackHead, tmp_path: Path) -> None:
    head.save(tmp_path / "head")
    before, after = (EmbeddingFeedbackReranker(bundle, one) for one in (head, tmp_path / "head"))
    request = request_of(*CANDIDATES)
    assert before.rerank([request])[0].scores == after.rerank([request])[0].scores
    (zero,) = EmbeddingFeedbackReranker(bundle, replace(head, head=replace(head.head, weight=0.0))).rerank([request])
    (dense,) = EmbeddingFeedbackReranker(bundle, beta=0.0).rerank([request])
    assert zero.scores == pytest.approx(dense.scores, abs=1e-6)
    assert zero.scores != pytest.approx(before.rerank([request])[0].scores, abs=1e-2)


def test_heads_of_others_are_refused(bundle: Bundle, head: FeedbackHead, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another model"):
        EmbeddingFeedbackReranker(bundle, replace(head, model_hash="0"))
    with pytest.raises(InputError, match="other vectors or relations"):
        EmbeddingFeedbackReranker(bundle, replace(head, text_IV=torch.ones(30, 4)))
    with pytest.raises(InputError, match=r"no feedback\.json"):
        FeedbackHead.load(tmp_path)
    head.save(tmp_path / "head")
    marker = tmp_path / "head" / "feedback.json"
    text = marker.read_text()
    for broken in (text.replace('"weight": 0.5', '"weight": -1'), text.replace('"version": 1', '"version": 9'), "[1]"):
        marker.write_text(broken)
        with pytest.raises(InputError, match="cannot be read as a feedback head"):
            FeedbackHead.load(tmp_path / "head")
    marker.write_text(text)
    (tmp_path / "head" / "feedback.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="fit the reranker again"):
        FeedbackHead.load(tmp_path / "head")
