"""Weights of memory terms: chosen on validation, kept in the checkpoint, and used by everything downstream."""

from __future__ import annotations

import pytest
import torch

from recsys.index.memory_terms import MemoryWeights
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.export import export, export_model
from recsys.pipelines.fit import fit_dataset, main
from recsys.pipelines.item_graphs import training_graph
from recsys.pipelines.memory_weights import choose_memory_weights


@pytest.fixture(scope="module")
def chosen(toy_model, toy_dataset):
    return choose_memory_weights(toy_model, toy_dataset, training_graph(toy_dataset))


def test_the_judged_figures_are_those_of_the_bundle(toy_model, toy_dataset, tmp_path, chosen):
    """Thirty items are all candidates, so the figures must be the evaluation's own."""
    export_model(toy_model, toy_dataset, tmp_path / "bundle", memory_weights=chosen.weights)
    found = evaluate_bundle(tmp_path / "bundle", toy_dataset, split="validation")["retrieval"]
    assert found["dense"]["ndcg@10"] == pytest.approx(chosen.sum_ndcg, abs=1e-6)
    assert found["dense_learned"]["ndcg@10"] == pytest.approx(chosen.learned_ndcg, abs=1e-6)


def test_the_sum_is_not_below_the_weightings_it_started_from(toy_model, toy_dataset, tmp_path, chosen):
    graph = training_graph(toy_dataset)
    start = MemoryWeights.decaying(0.5, graph.default_weights, toy_model.config.recent, 0.6)
    export_model(toy_model, toy_dataset, tmp_path / "bundle", memory_weights=start)
    before = evaluate_bundle(tmp_path / "bundle", toy_dataset, split="validation")["retrieval"]["dense"]["ndcg@10"]
    assert chosen.sum_ndcg >= before


def test_a_relation_can_be_switched_off(toy_model, toy_dataset, tmp_path, chosen):
    weights = MemoryWeights.decaying(0.0, {"transition": 1.0, "text": 2.0}, toy_model.config.recent, 0.6)
    export_model(toy_model, toy_dataset, tmp_path / "bundle", memory_weights=weights)
    names = ["memory/transition", "memory", "dense", "dense/transition", "dense/text"]
    found = evaluate_bundle(tmp_path / "bundle", toy_dataset, retrievers=names)["retrieval"]
    assert set(found) == set(names)
    assert found["dense/transition"]["recall@10"] == pytest.approx(found["memory/transition"]["recall@10"], abs=0.2)
    assert found["dense/text"] != found["dense/transition"]


def test_fit_ends_with_weights_that_validate_and_export_use(toy_dataset, tmp_path, capsys):
    best = fit_dataset(toy_dataset, tmp_path / "run", max_epochs=1, dim=8, enable_progress_bar=False, accelerator="cpu")
    assert "with memory terms" in capsys.readouterr().out
    _, meta = load_model(best)
    weights = MemoryWeights.from_dict(meta["memory_weights"])
    assert set(weights.relations) == set(training_graph(toy_dataset).relations)
    export(best, toy_dataset.path, tmp_path / "bundle")
    found = evaluate_bundle(tmp_path / "bundle", toy_dataset, split="validation")["retrieval"]
    main(["validate", "--data.path", str(toy_dataset.path), "--ckpt_path", str(best), "--trainer.accelerator", "cpu"])
    said = capsys.readouterr().out
    for name in ("dense", "dense_learned"):
        assert f"val/{name}/ndcg@10" in said and f"{found[name]['ndcg@10']:.6f}"[:6] in said


def test_fit_without_memory_leaves_the_learned_part_alone(toy_dataset, tmp_path):
    best = fit_dataset(
        toy_dataset, tmp_path / "run", max_epochs=1, dim=8, memory=False, enable_progress_bar=False, quiet=True
    )
    assert "memory_weights" not in load_model(best)[1]
    export(best, toy_dataset.path, tmp_path / "bundle")
    found = evaluate_bundle(tmp_path / "bundle", toy_dataset, split="validation")["retrieval"]
    assert found["dense"].items() <= found["dense_learned"].items()  # which also has the difference, 0
    assert found["dense_learned"]["ndcg@10_minus"] == 0


def test_the_same_model_gets_the_same_weights(toy_model, toy_dataset, chosen):
    torch.manual_seed(5)
    assert choose_memory_weights(toy_model, toy_dataset, training_graph(toy_dataset)) == chosen
