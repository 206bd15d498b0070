"""A head of embedding feedback learns what the dense score lacks, on lists that it did not see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.metrics import ndcg_at
from recsys.pipelines.request_tensors import request_tensors
from recsys.pipelines.rerank_feedback import fit_feedback
from recsys.retrieval.rerank.embedding_feedback import EmbeddingFeedbackReranker
from recsys.retrieval.rerank.feedback_head import FeedbackHead


def test_the_head_learns_and_its_folder_gives_the_same(chain: tuple[Dataset, Bundle], tmp_path: Path) -> None:
    dataset, bundle = chain
    fitted = fit_feedback(bundle, dataset)
    assert fitted.head.head.weight > 0 and fitted.ndcg > fitted.dense_ndcg + 0.05
    assert fitted.num_lists <= fitted.num_requests == len(dataset.requests("validation"))
    fitted.head.save(tmp_path / "head")
    loaded = FeedbackHead.load(tmp_path / "head")
    assert loaded.head.weight == fitted.head.head.weight and loaded.report == fitted.head.report
    # Test targets, which nothing was fitted on: the first 20 of the dense order, put in order again.
    requests = dataset.requests("test")
    histories, at_B, surface_B, target_B = request_tensors(dataset, requests)
    reranker = EmbeddingFeedbackReranker(bundle, tmp_path / "head", training_only=True)
    states = bundle.model.encode(histories, keep_cache=False)
    item_BK = reranker.features.dense.search(states, 20, at_B=at_B, surface_B=surface_B).ids_QK
    score_BK = reranker.scores(histories, item_BK, at_B)
    assert torch.equal(score_BK, EmbeddingFeedbackReranker(bundle, fitted.head, training_only=True).scores(
        histories, item_BK, at_B
    ))  # fmt: skip

    def ndcg(order_BK: torch.Tensor) -> float:
        hit_BK = item_BK.gather(1, order_BK) == target_B[:, None]
        place_B = torch.where(hit_BK.any(1), hit_BK.int().argmax(1) + 1, 1000)
        return float(ndcg_at(place_B.numpy(), 10).mean())

    before = ndcg(torch.arange(20).expand(len(item_BK), -1))
    assert ndcg(score_BK.argsort(dim=1, descending=True)) > before + 0.05


def test_the_same_seed_fits_the_same_head(chain: tuple[Dataset, Bundle]) -> None:
    dataset, bundle = chain
    one, other = (fit_feedback(bundle, dataset, num_users=60, seed=3) for _ in range(2))
    assert one.num_requests == 60 and one.head.head.weight == other.head.head.weight
    for first, second in zip(one.head.head.net.parameters(), other.head.head.net.parameters(), strict=True):
        assert torch.equal(first, second)


def test_too_few_lists_are_refused(toy_dataset: Dataset, toy_bundle: Path, chain: tuple[Dataset, Bundle]) -> None:
    with pytest.raises(InputError, match="needs 50 to learn from"):
        fit_feedback(Bundle.open(toy_bundle), toy_dataset)
    with pytest.raises(InputError):
        fit_feedback(chain[1], toy_dataset)
