"""Learned score plus memory terms: however the hits are found, they are the sorted list of all sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Dataset
from recsys.index.item_graph import ItemGraph
from recsys.index.memory_terms import MemoryTerms, MemoryWeights
from recsys.index.registry import build_index
from recsys.model import UnifiedModel
from recsys.retrieval import dense
from recsys.retrieval.dense import DenseRetriever

AT = 1_702_000_000
WEIGHTS = {"transition": (1.0, 0.6, 0.3), "text": (2.0, 0.5)}


@pytest.fixture(scope="module")
def graph(toy_dataset: Dataset) -> ItemGraph:
    transitions = scipy.sparse.random(30, 30, 0.3, random_state=1, format="csr")
    transitions.setdiag(0)
    transitions.eliminate_zeros()
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    return ItemGraph.build(30, transitions=transitions, texts={"text": vectors}, max_neighbours=5)


def _states(model: UnifiedModel, dataset: Dataset):
    histories = [dataset.events.history(user, user) for user in range(12)]  # of any length, none among them
    return model.encode(histories, keep_cache=False), torch.full((12,), AT), torch.arange(12) % 3


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("k", [1, 8, 40])
@pytest.mark.parametrize("cut", [False, True])
def test_hits_are_the_best_of_all_sums(toy_model, toy_dataset, graph, monkeypatch, whole, k, cut):
    if not whole:
        monkeypatch.setattr(dense, "_WHOLE_ITEMS", 0)
    vectors = toy_model.item_vectors()
    terms = MemoryTerms(graph, WEIGHTS)
    retriever = DenseRetriever(toy_model, build_index("exact", vectors), vectors, memory=terms, learned=0.4)
    states, at_B, surface_B = _states(toy_model, toy_dataset)
    score_BI = retriever.scores(states, at_B=at_B, surface_B=surface_B)
    by_hand = 0.4 * toy_model.query(states, at_B, surface_B) @ vectors.T
    relations = {name: graph.relations.index(name) for name in WEIGHTS}
    for user in range(12):
        for name, row in WEIGHTS.items():
            for b, item in zip(row, states.recent_BM[user].tolist(), strict=False):
                if item >= 0:
                    at = item * len(relations) + relations[name]
                    span = slice(int(graph.indptr[at]), int(graph.indptr[at + 1]))
                    by_hand[user, graph.neighbours[span].long()] += b * graph.values[span]
    assert torch.allclose(score_BI, by_hand, atol=1e-5)
    limits = {}
    if cut:
        limits = {
            "exclude_QE": torch.stack([torch.tensor([user, -1, 29]) for user in range(12)]),
            "allow_N": torch.arange(5, 30),
        }
        score_BI[:, :5] = score_BI[:, 29] = -torch.inf
        score_BI[torch.arange(12), torch.arange(12)] = -torch.inf
    hits = retriever.search(states, k, at_B=at_B, surface_B=surface_B, **limits)
    best = score_BI.sort(dim=1, descending=True, stable=True)
    count = (best.values > -torch.inf).sum(1).clamp_max(k)
    for user in range(12):
        wanted = best.indices[user, : count[user]]
        assert hits.ids_QK[user].tolist() == wanted.tolist() + [-1] * (k - len(wanted))
        assert torch.allclose(hits.scores_QK[user, : len(wanted)], best.values[user, : len(wanted)], atol=1e-5)


def test_terms_of_some_items_are_those_of_the_whole_catalogue(toy_model, toy_dataset, graph):
    is_new_I = torch.arange(30) % 7 == 0
    terms = MemoryTerms(graph, WEIGHTS, is_new_I=is_new_I, new_items=1.7, start_items=(3, 8), start_values=(0.5, 0.25))
    states, _, _ = _states(toy_model, toy_dataset)
    is_new_B = states.num_events_B == 0
    assert is_new_B.any() and not is_new_B.all()
    every_BI = torch.zeros(12, 30)
    terms.add_to(every_BI, states.recent_BM, is_new_B)
    item_BC = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(n))[:9] for n in range(12)])
    item_BC[:, 4] = torch.where(torch.arange(12) % 2 == 0, -1, item_BC[:, 4])
    found_BC = terms.sums_of(states.recent_BM, item_BC, is_new_B)
    assert torch.equal(found_BC, torch.where(item_BC >= 0, every_BI.gather(1, item_BC.clamp_min(0)), 0.0))
    assert found_BC.any() and terms.sums_of(states.recent_BM[:0], item_BC[:0]).shape == (0, 9)
    silent = MemoryTerms(graph, {})
    assert not silent.sums_of(states.recent_BM, item_BC).any()


def test_content_of_new_items_counts_so_many_times(graph: ItemGraph):
    recent_BM = torch.tensor([[3, 8, 11, -1], [5, -1, -1, -1]])
    is_new_I = torch.arange(30) % 3 == 0
    plain, more, text = (torch.zeros(2, 30) for _ in range(3))
    MemoryTerms(graph, WEIGHTS).add_to(plain, recent_BM)
    MemoryTerms(graph, {"text": WEIGHTS["text"]}).add_to(text, recent_BM)
    terms = MemoryTerms(graph, WEIGHTS, is_new_I=is_new_I, new_items=2.5)
    terms.add_to(more, recent_BM)
    assert text[:, is_new_I].any() and torch.allclose(more, plain + 1.5 * text * is_new_I, atol=1e-6)
    user_X, item_X, sum_X = terms.pairs(recent_BM)
    assert torch.equal(sum_X, more[user_X, item_X])


@settings(max_examples=25, deadline=None)
@given(recent=st.lists(st.lists(st.integers(-1, 29), min_size=4, max_size=4), min_size=1, max_size=5))
def test_pairs_and_sums_are_the_same_terms(graph: ItemGraph, recent):
    recent_BM = torch.tensor(recent)
    terms = MemoryTerms(graph, WEIGHTS)
    summed_BI = torch.zeros(len(recent), 30)
    terms.add_to(summed_BI, recent_BM)
    user_X, item_X, sum_X = terms.pairs(recent_BM)
    laid_BI = torch.zeros_like(summed_BI)
    laid_BI[user_X, item_X] = sum_X
    assert torch.equal(laid_BI, summed_BI)
    item_BC = torch.arange(-1, 30).flip(0).expand(len(recent), -1)
    assert torch.equal(terms.sums_of(recent_BM, item_BC), torch.nn.functional.pad(summed_BI, (1, 0)).flip(1))
    assert (torch.stack([user_X, item_X]).T.unique(dim=0).shape[0]) == len(user_X)


def test_scores_of_some_items_are_those_of_a_search_whatever_the_catalogue_holds(
    toy_model, toy_dataset, graph, monkeypatch, largest_tensor
):
    monkeypatch.setattr(dense, "_WHOLE_ITEMS", 0)
    vectors, far = toy_model.item_vectors(), 100_000
    vectors = torch.cat([vectors, vectors[:1].expand(far - 30, -1)])
    rows = torch.nn.functional.pad(graph.indptr, (0, 2 * (far - 30)), value=int(graph.indptr[-1]))
    terms = MemoryTerms(replace(graph, indptr=rows), WEIGHTS, start_items=(4, 9), start_values=(3.0, 1.0))
    retriever = DenseRetriever(toy_model, build_index("exact", vectors), vectors, memory=terms, learned=0.4)
    states, at_B, surface_B = _states(toy_model, toy_dataset)
    hits = retriever.search(states, 20, at_B=at_B, surface_B=surface_B)
    with largest_tensor() as watch:
        found = retriever.scores_of(states, hits.ids_QK, at_B=at_B, surface_B=surface_B)
    assert torch.equal(found, hits.scores_QK)
    assert watch.num_bytes < 1_000_000  # a table of 12 users and all items holds 4.8 MB


def test_the_rule_is_the_terms_with_decaying_weights(graph: ItemGraph):
    recent_BM = torch.tensor([[3, 8, 8, -1], [-1, -1, -1, -1]])
    weights = MemoryWeights.decaying(0.5, graph.default_weights, 4, 0.6)
    score_BI = torch.zeros(2, 30)
    MemoryTerms(graph, weights.relations).add_to(score_BI, recent_BM)
    assert torch.allclose(score_BI, graph.scores(recent_BM), atol=1e-6) and score_BI[0].any() and not score_BI[1].any()


def test_weights_survive_json_and_refuse_nonsense(graph: ItemGraph):
    weights = MemoryWeights(0.25, {"text": (1.0, 0.5)}, new_items=1.4)
    assert MemoryWeights.from_dict(weights.to_dict()) == weights
    with pytest.raises(ValueError, match="at least 0"):
        MemoryWeights(0.5, {"text": (-1.0,)})
    with pytest.raises(ValueError, match="no relation 'colour'"):
        MemoryTerms(graph, {"colour": (1.0,)})
