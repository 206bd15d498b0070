"""One setting chooses the relations of the memory terms, and everything after goes by their names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.index.memory_terms import MemoryWeights
from recsys.index.walks import WALKS
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.cli import main
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.evaluation_baselines import BaselineRuns
from recsys.pipelines.export import export, export_model
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.item_graphs import chosen_relations, item_graphs, training_graph
from recsys.retrieval.recommender import Recommender


def test_names_and_their_order(toy_dataset: Dataset) -> None:
    assert chosen_relations(toy_dataset, None) == chosen_relations(toy_dataset, "default") == ("transition", "text")
    assert chosen_relations(toy_dataset, "text") == ("text",)
    assert chosen_relations(toy_dataset, "default, pagerank") == ("transition", "pagerank", "text")
    assert chosen_relations(toy_dataset, "two_step") == ("transition", "two_step")
    with pytest.raises(InputError, match="no relation 'minilm' between items; choose some of transition, two_step"):
        chosen_relations(toy_dataset, "default,minilm")


def test_every_relation_is_one_of_the_graph(toy_dataset: Dataset) -> None:
    plain, graph = training_graph(toy_dataset), training_graph(toy_dataset, ("text", "pagerank", "two_step"))
    assert graph.relations == ("transition", "two_step", "pagerank", "text")
    recent = torch.arange(30).unsqueeze(1)
    for name in plain.relations:
        assert torch.equal(graph.scores(recent, {name: 1.0}), plain.scores(recent, {name: 1.0}))
    for name in WALKS:
        assert graph.scores(recent, {name: 1.0}).any()


def test_the_serving_graph_is_that_of_all_events(toy_dataset: Dataset) -> None:
    train, now = item_graphs(toy_dataset, ("default", "pagerank"))
    recent = torch.arange(30).unsqueeze(1)
    assert torch.equal(train.scores(recent, {"text": 1.0}), now.scores(recent, {"text": 1.0}))
    for name in ("transition", "pagerank"):
        assert not torch.equal(train.scores(recent, {name: 1.0}), now.scores(recent, {name: 1.0}))
    only = item_graphs(toy_dataset, ("text",))
    assert only[0].relations == only[1].relations == ("text",)


def test_fit_names_the_relations_and_all_commands_use_them(
    toy_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = fit_dataset(
        toy_dataset,
        tmp_path / "run",
        max_epochs=1,
        dim=8,
        memory_relations="default,pagerank,two_step",
        enable_progress_bar=False,
        accelerator="cpu",
    )
    assert "pagerank" in capsys.readouterr().out
    weights = MemoryWeights.from_dict(load_model(best)[1]["memory_weights"])
    assert tuple(weights.relations) == ("transition", "two_step", "pagerank", "text")
    export(best, toy_dataset.path, tmp_path / "bundle", histories=True)
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.graph_train.relations == bundle.graph_now.relations == tuple(weights.relations)
    names = ["dense", "dense/pagerank", "memory/two_step,text"]
    found = evaluate_bundle(tmp_path / "bundle", toy_dataset, retrievers=names, split="validation")["retrieval"]
    assert set(found) == set(names)
    assert Recommender.load(tmp_path / "bundle").recommend(user_id=toy_dataset.user_ids[0], k=5)
    capsys.readouterr()
    main(["validate", "--data.path", str(toy_dataset.path), "--ckpt_path", str(best), "--trainer.accelerator", "cpu"])
    assert f"{found['dense']['ndcg@10']:.6f}"[:6] in capsys.readouterr().out


def test_a_wrong_relation_is_said_before_training(
    toy_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    words = [
        "fit",
        "--data.path",
        str(toy_dataset.path),
        "--trainer.default_root_dir",
        run,
        "--memory_relations",
        "knn",
    ]
    assert main(words) == 2
    assert "no relation 'knn'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_baseline_keeps_its_relations(toy_model, toy_dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    weights = MemoryWeights.decaying(0.5, {"pagerank": 5.0, "transition": 1.0}, toy_model.config.recent, 0.6)
    export_model(toy_model, toy_dataset, tmp_path / "bundle", memory_weights=weights)
    requests = toy_dataset.requests("test")
    usual = BaselineRuns(toy_dataset).ranked("memory", {"here": requests})["here"]
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "other"))
    graph = Bundle.open(tmp_path / "bundle").graph_train
    assert graph.relations == ("transition", "pagerank")
    beside = BaselineRuns(toy_dataset, graph).ranked("memory", {"here": requests})["here"]
    np.testing.assert_array_equal(usual.rank_Q, beside.rank_Q)
