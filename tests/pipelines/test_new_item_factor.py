"""How much more content counts for items without training events, judged on items that are taken for such."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.sparse
import torch

from recsys.index.item_graph import GAMMA, ItemGraph
from recsys.index.memory_terms import MemoryTerms, MemoryWeights
from recsys.index.registry import build_index
from recsys.pipelines import new_item_factor
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.cli import main
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.item_graphs import training_graph
from recsys.pipelines.new_item_factor import choose_new_item_factor
from recsys.pipelines.recipe import validation_requests
from recsys.retrieval.dense import DenseRetriever


@pytest.fixture(scope="module")
def weights(toy_model):
    return MemoryWeights.decaying(0.5, {"transition": 1.0, "text": 2.0}, toy_model.config.recent, 0.6)


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch):
    monkeypatch.setattr(new_item_factor, "_FEWEST", 1)


def _ndcg_as_if_new(model, dataset, graph, requests, weights, factor):
    """One request at a time, by a retriever of a model and a graph that do not know the target's part."""
    part_I = np.random.default_rng(0).integers(0, 10, dataset.num_items)
    row = graph.relations.index("transition")
    gains = []
    for number in range(len(requests)):
        request = requests.rows(np.array([number]))
        is_new_I = torch.from_numpy(part_I == part_I[request.target[0]]) | ~model.items.has_id_I
        other = copy.deepcopy(model)
        other.items.has_id_I &= ~is_new_I
        probability = np.zeros((30, 30))
        for item in range(30):
            at = item * len(graph.relations) + row
            span = slice(int(graph.indptr[at]), int(graph.indptr[at + 1]))
            probability[item, graph.neighbours[span]] = torch.expm1(graph.values[span]) / GAMMA
        probability[:, is_new_I] = 0
        cut = ItemGraph.build(30, transitions=scipy.sparse.csr_matrix(probability), texts={"text": dataset.sparse_text})
        vectors_ID = other.item_vectors()
        terms = MemoryTerms(cut, weights.relations, is_new_I=is_new_I, new_items=factor)
        retriever = DenseRetriever(
            model, build_index("exact", vectors_ID), vectors_ID, memory=terms, learned=weights.learned
        )
        history = dataset.events.history(int(request.user[0]), int(request.end[0]))
        hits = retriever.search(
            model.encode([history], keep_cache=False),
            10,
            at_B=torch.tensor(request.timestamp),
            surface_B=torch.tensor(request.surface),
            exclude_QE=torch.tensor(history.item)[None],
        )
        place = (hits.ids_QK[0] == int(request.target[0])).nonzero()
        gains.append(1 / np.log2(2 + int(place[0])) if len(place) else 0.0)
    return np.mean(gains)


def test_targets_are_answered_as_if_their_part_were_new(toy_model, toy_dataset, weights, monkeypatch):
    graph = training_graph(toy_dataset)
    requests = validation_requests(toy_dataset)
    for factor in (1.0, 2.5):
        monkeypatch.setattr(new_item_factor, "_FACTORS", (factor,))
        chosen = choose_new_item_factor(toy_model, toy_dataset, graph, requests, weights)
        assert chosen is not None and chosen.factor == factor and chosen.ndcg == chosen.plain_ndcg
        by_hand = _ndcg_as_if_new(toy_model, toy_dataset, graph, requests, weights, factor)
        assert chosen.ndcg == pytest.approx(by_hand, abs=1e-6) and chosen.ndcg > 0


def test_the_smallest_factor_that_is_enough(toy_model, toy_dataset, weights):
    graph, requests = training_graph(toy_dataset), validation_requests(toy_dataset)
    chosen = choose_new_item_factor(toy_model, toy_dataset, graph, requests, weights)
    assert chosen.factor > 1 and chosen.plain_ndcg < chosen.content_ndcg <= chosen.ndcg
    loud = MemoryWeights(0.0, {"text": weights.relations["text"]})
    assert choose_new_item_factor(toy_model, toy_dataset, graph, requests, loud).factor == 1


def test_nothing_is_chosen_where_nothing_is_new_or_no_content_has_a_weight(toy_model, toy_dataset, weights):
    graph, requests = training_graph(toy_dataset), validation_requests(toy_dataset)
    silent = MemoryWeights(0.5, {**weights.relations, "text": (0.0,) * toy_model.config.recent})
    assert choose_new_item_factor(toy_model, toy_dataset, graph, requests, silent) is None
    known = copy.deepcopy(toy_model)
    known.items.has_id_I[:] = True
    assert choose_new_item_factor(known, toy_dataset, graph, requests, weights) is None


def test_a_given_factor_is_kept(toy_dataset, tmp_path):
    best = fit_dataset(
        toy_dataset, tmp_path / "run", max_epochs=1, dim=8, enable_progress_bar=False, quiet=True, new_item_factor=3.0
    )
    assert load_model(best)[1]["memory_weights"]["new_items"] == 3.0


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "much"])
def test_a_factor_that_means_nothing_is_refused_before_training(toy_dataset, tmp_path, capsys, wrong):
    run = ["fit", "--data.path", str(toy_dataset.path), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main([*run, "--new_item_factor", wrong]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "--new_item_factor" in said and wrong in said
    assert not (tmp_path / "run").exists()
