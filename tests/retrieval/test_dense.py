"""The dense retriever: its search is the sorted list of its scores, and its scores are the model's."""

from __future__ import annotations

import pytest
import torch

from recsys.dataset import Dataset
from recsys.index.registry import build_index
from recsys.model import UnifiedModel
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.protocol import Retriever

AT = 1_702_000_000


@pytest.fixture(scope="module")
def retriever(toy_model: UnifiedModel) -> DenseRetriever:
    vectors = toy_model.item_vectors()
    return DenseRetriever(toy_model, build_index("exact", vectors), vectors)


def test_search_sorts_the_scores_of_the_catalogue(retriever: DenseRetriever, toy_dataset: Dataset):
    histories = [toy_dataset.events.history(user) for user in range(12)]
    states = retriever.model.encode(histories, keep_cache=False)
    at_B, surface_B = torch.full((12,), AT), torch.arange(12) % 3
    score_BI = retriever.scores(states, at_B=at_B, surface_B=surface_B)
    query_BD = retriever.model.query(states, at_B, surface_B)
    assert torch.allclose(score_BI, query_BD @ retriever.model.item_vectors().T, atol=1e-6)
    exclude_QE = torch.stack([torch.tensor([user, -1, 29]) for user in range(12)])
    allow_N = torch.arange(0, 30, 1)[5:]
    hits = retriever.search(states, 8, at_B=at_B, surface_B=surface_B, exclude_QE=exclude_QE, allow_N=allow_N)
    score_BI[:, :5] = -torch.inf
    score_BI[torch.arange(12), torch.arange(12)] = -torch.inf
    score_BI[:, 29] = -torch.inf
    best = score_BI.sort(dim=1, descending=True, stable=True)
    assert torch.equal(hits.ids_QK, best.indices[:, :8])
    assert torch.allclose(hits.scores_QK, best.values[:, :8], atol=1e-5)


def test_it_is_a_retriever_by_either_name(retriever: DenseRetriever):
    assert isinstance(retriever, Retriever)
    assert retriever.name == "dense"
    assert DenseRetriever(retriever.model, retriever.index, retriever.vectors, "dense_learned").name == "dense_learned"


def test_an_index_of_other_vectors_is_refused(toy_model: UnifiedModel):
    vectors = toy_model.item_vectors()
    with pytest.raises(ValueError, match="the index holds 3 items but there are 30 vectors"):
        DenseRetriever(toy_model, build_index("exact", vectors[:3]), vectors)
