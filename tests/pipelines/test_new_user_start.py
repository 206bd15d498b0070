"""What users without any event start from: chosen on validation, used by everything downstream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.index.memory_terms import MemoryTerms, MemoryWeights
from recsys.index.registry import build_index
from recsys.pipelines import new_user_start
from recsys.pipelines.export import export_model
from recsys.pipelines.item_graphs import training_graph
from recsys.pipelines.new_user_start import choose_new_user_start
from recsys.pipelines.recipe import validation_requests
from recsys.retrieval import dense
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.recommender import Recommender

RELATIONS = {"transition": (1.0, 0.6), "text": (2.0, 0.5)}


@pytest.fixture(scope="module")
def frequent(toy_dataset):
    """Validation requests for one of the five most frequent items."""
    requests = validation_requests(toy_dataset)
    count_I = np.bincount(toy_dataset.events.item, minlength=30)
    return requests.rows(np.flatnonzero(np.isin(requests.target, count_I.argsort()[-5:])))


@pytest.fixture(scope="module")
def chosen(toy_model, toy_dataset, frequent):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_user_start, "_FEWEST", 1)
        return choose_new_user_start(toy_model, toy_dataset, frequent, 0.5)


def test_the_judged_figures_are_those_of_the_retriever(toy_model, toy_dataset, frequent, chosen):
    assert chosen is not None and chosen.ndcg > chosen.plain_ndcg > 0
    vectors = toy_model.item_vectors()
    states = toy_model.encode([toy_dataset.events.history(int(user), 0) for user in frequent.user])
    for ndcg, items, values in ((chosen.ndcg, chosen.items, chosen.values), (chosen.plain_ndcg, (), ())):
        terms = MemoryTerms(training_graph(toy_dataset), RELATIONS, start_items=items, start_values=values)
        retriever = DenseRetriever(toy_model, build_index("exact", vectors), vectors, memory=terms, learned=0.5)
        hits = retriever.search(
            states, 10, at_B=torch.from_numpy(frequent.timestamp), surface_B=torch.from_numpy(frequent.surface)
        )
        found_Q, place_Q = (hits.ids_QK == torch.from_numpy(frequent.target)[:, None]).nonzero(as_tuple=True)
        assert len(found_Q) and float((1 / torch.log2(place_Q + 2.0)).sum()) / len(frequent) == pytest.approx(
            ndcg, abs=1e-6
        )


def test_nothing_is_chosen_where_it_does_no_good(toy_model, toy_dataset, frequent, monkeypatch):
    assert choose_new_user_start(toy_model, toy_dataset, frequent, 0.5) is None  # too few requests
    monkeypatch.setattr(new_user_start, "_FEWEST", 1)
    count_I = np.bincount(toy_dataset.events.item, minlength=30)
    requests = validation_requests(toy_dataset)
    rare = requests.rows(np.flatnonzero(np.isin(requests.target, count_I.argsort()[:8])))
    assert len(rare) and choose_new_user_start(toy_model, toy_dataset, rare, 0.5) is None


def test_values_follow_the_positive_training_events(toy_dataset, chosen):
    log = toy_dataset.events
    place_N = np.arange(len(log)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
    trains_N = (place_N < np.repeat(toy_dataset.train_end, np.diff(log.offsets))) & toy_dataset.is_positive()
    count_I = np.bincount(log.item[trains_N], minlength=toy_dataset.num_items)
    by_hand = np.log1p(count_I) - np.log1p(count_I.min())
    values = np.zeros(toy_dataset.num_items)
    values[list(chosen.items)] = chosen.values
    assert values.max() > 0 and np.allclose(values * by_hand.max(), by_hand * values.max(), atol=1e-3)


def test_only_users_without_any_event_start_there(toy_dataset):
    graph = training_graph(toy_dataset)
    recent_BM = torch.tensor([[3, -1], [-1, -1], [7, 8], [-1, -1], [-1, -1]])  # user 4 has events, none positive
    is_new_B = torch.tensor([False, True, False, True, False])
    plain, started = torch.zeros(5, 30), torch.zeros(5, 30)
    MemoryTerms(graph, RELATIONS).add_to(plain, recent_BM)
    terms = MemoryTerms(graph, RELATIONS, start_items=(4, 9), start_values=(2.0, 1.0))
    terms.add_to(started, recent_BM, is_new_B)
    plain[[1, 3], 4], plain[[1, 3], 9] = 2.0, 1.0
    assert torch.equal(started, plain)
    user_X, item_X, sum_X = terms.pairs(recent_BM, is_new_B)
    laid = torch.zeros_like(started)
    laid[user_X, item_X] = sum_X
    assert torch.equal(laid, started)
    assert (
        MemoryTerms(graph, {}).is_empty and not MemoryTerms(graph, {}, start_items=(4,), start_values=(1.0,)).is_empty
    )


@pytest.mark.parametrize("whole", [True, False])
def test_who_was_only_shown_items_is_no_new_user(toy_model, toy_dataset, monkeypatch, whole):
    """Somebody whose events are all bare or negative has a state that says something."""
    if not whole:
        monkeypatch.setattr(dense, "_WHOLE_ITEMS", 0)
    log, positive_N = toy_dataset.events, toy_dataset.is_positive()
    user = next(user for user in range(40) if not positive_N[log.offsets[user]])
    states = toy_model.encode([log.history(user, 1), log.history(user, 0)])
    assert states.recent_BM.eq(-1).all()
    vectors = toy_model.item_vectors()
    lists, scores = [], []
    for start in ({}, {"start_items": (11, 4), "start_values": (900.0, 800.0)}):
        terms = MemoryTerms(training_graph(toy_dataset), RELATIONS, **start)
        retriever = DenseRetriever(toy_model, build_index("exact", vectors), vectors, memory=terms)
        request = {"at_B": torch.full((2,), 1_702_000_000), "surface_B": torch.zeros(2, dtype=torch.int64)}
        lists.append(retriever.search(states, 5, **request).ids_QK)
        scores.append(retriever.scores(states, **request))
    assert torch.equal(lists[0][0], lists[1][0]) and torch.equal(scores[0][0], scores[1][0])
    assert lists[1][1, :2].tolist() == [11, 4] and scores[1][1, 11] > scores[0][1, 11] + 800


def test_a_new_user_is_answered_with_frequent_items(toy_model, toy_dataset, tmp_path):
    weights = MemoryWeights(0.5, RELATIONS, 1.0, (11, 4), (900.0, 800.0))
    export_model(toy_model, toy_dataset, tmp_path / "bundle", memory_weights=weights)
    page = Recommender.load(tmp_path / "bundle").recommend(history=[], k=3)
    assert [hit.item_id for hit in page][:2] == toy_dataset.item_ids[[11, 4]].to_list()


def test_values_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="2 items to start from have 1 values"):
        MemoryWeights(1.0, {}, 1.0, (1, 2), (0.5,))
    with pytest.raises(ValueError, match="at least 0"):
        MemoryWeights(1.0, {}, 1.0, (1,), (-0.5,))
    weights = MemoryWeights(1.0, {}, 1.0, (1, 2), (0.5, 0.25))
    assert MemoryWeights.from_dict(weights.to_dict()) == weights
