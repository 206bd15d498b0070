"""New users and held-out items as segments of an evaluation: their figures are those of slow loops."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.dataset import Dataset
from recsys.model import UnifiedModel
from recsys.pipelines.baselines.text_knn import fit_text_knn
from recsys.pipelines.cli import main
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.export import export_model
from recsys.pipelines.prepare.build import prepare_frames


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cold_dataset(toy_frames: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_frames(**toy_frames, output=tmp_path_factory.mktemp("cold") / "data", cold_items=0.2)


@pytest.fixture(scope="module")
def cold_bundle(cold_dataset: Dataset, toy_model: UnifiedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cold") / "bundle"
    export_model(toy_model, cold_dataset, path)
    return path


def _gains(ranks: list[float]) -> tuple[float, float]:
    """Recall@10 and NDCG@10."""
    return float(np.mean([rank <= 10 for rank in ranks])), float(
        np.mean([1 / log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks])
    )


def test_new_users_are_answered_without_their_history(
    toy_bundle: Path, toy_dataset: Dataset, toy_model: UnifiedModel
) -> None:
    requests = toy_dataset.requests("test")
    items, nobody = toy_model.item_vectors(), toy_dataset.events.history(0, 0)
    ranks = []
    for q in range(len(requests)):
        at, surface = torch.tensor([requests.timestamp[q]]), torch.tensor([requests.surface[q]])
        with torch.inference_mode():
            score = (toy_model.query(toy_model.encode([nobody]), at, surface) @ items.T)[0].numpy()
        ranks.append((score >= score[requests.target[q]]).sum())
    result = evaluate_bundle(toy_bundle, toy_dataset, retrievers=["dense_learned"], baselines="popularity")
    row = result["segments"]["new_users"]
    assert row["num_users"] == row["num_targets"] == len(requests)
    assert (row["recall@10"], row["ndcg@10"]) == pytest.approx(_gains(ranks), abs=1e-6)

    counts = np.zeros(toy_dataset.num_items)
    for user in range(toy_dataset.num_users):
        history = toy_dataset.events.history(user, int(toy_dataset.train_end[user]))
        np.add.at(counts, history.positives(toy_dataset.manifest.positive_mask).item, 1)
    other = row["baselines"]["popularity"]
    expected = _gains([(counts >= counts[target]).sum() for target in requests.target])
    assert (other["recall@10"], other["ndcg@10"]) == pytest.approx(expected)
    assert other["recall@10"] != result["baselines"]["popularity"]["recall@10"]  # that one filters histories
    for figure in ("recall@10", "ndcg@10"):
        assert other[f"{figure}_minus"] == pytest.approx(row[figure] - other[figure])
        low, high = other[f"{figure}_minus_ci"]
        assert low <= other[f"{figure}_minus"] <= high


def test_cold_items_stand_beside_text_knn(cold_bundle: Path, cold_dataset: Dataset, toy_model: UnifiedModel) -> None:
    requests = cold_dataset.requests("cold")
    items, knn = toy_model.item_vectors(), fit_text_knn(cold_dataset).score(requests)
    ours, theirs = [], []
    for q in range(len(requests)):
        history = cold_dataset.events.history(int(requests.user[q]), int(requests.end[q]))
        at, surface = torch.tensor([requests.timestamp[q]]), torch.tensor([requests.surface[q]])
        with torch.inference_mode():
            score = (toy_model.query(toy_model.encode([history]), at, surface) @ items.T)[0].numpy()
        left = np.setdiff1d(np.arange(30), history.item)
        assert requests.target[q] in left
        ours.append((score[left] >= score[requests.target[q]]).sum())
        theirs.append((knn[q, left] >= knn[q, requests.target[q]]).sum())
    result = evaluate_bundle(cold_bundle, cold_dataset, retrievers=["dense_learned"], baselines="text_knn,popularity")
    row = result["segments"]["cold_items"]
    assert row["num_targets"] == row["num_users"] == len(requests) > 10
    assert (row["recall@10"], row["ndcg@10"]) == pytest.approx(_gains(ours), abs=1e-6)
    (name,) = row["baselines"]
    other = row["baselines"][name]
    assert name == "text_knn"
    assert (other["recall@10"], other["ndcg@10"]) == pytest.approx(_gains(theirs), abs=1e-6)
    assert other["recall@10_minus"] == pytest.approx(row["recall@10"] - other["recall@10"])
    low, high = other["recall@10_minus_ci"]
    assert low <= other["recall@10_minus"] <= high and low < high
    assert "untrained_items" in result["segments"]
    again = evaluate_bundle(cold_bundle, cold_dataset, retrievers=["dense_learned"], baselines="text_knn,popularity")
    assert again["segments"] == result["segments"] and "text_knn" in again["notes"][0]


def test_unasked_no_baseline_stands_there(cold_bundle: Path, cold_dataset: Dataset) -> None:
    segments = evaluate_bundle(cold_bundle, cold_dataset)["segments"]
    assert "baselines" not in segments["cold_items"] and "baselines" not in segments["new_users"]
    assert segments["cold_items"]["num_users"] > 0
    held_in = evaluate_bundle(cold_bundle, cold_dataset, split="validation")["segments"]
    assert "cold_items" not in held_in and held_in["new_users"]["num_users"] == len(cold_dataset.requests("validation"))


def test_without_held_out_items_cold_items_are_those_of_the_split(toy_bundle: Path, toy_dataset: Dataset) -> None:
    segments = evaluate_bundle(toy_bundle, toy_dataset)["segments"]
    assert "untrained_items" not in segments
    assert segments["cold_items"]["meaning"] == "target without a training event"
    assert "num_targets" not in segments["cold_items"]


def test_the_command_prints_and_writes_them(
    cold_bundle: Path, cold_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(cold_bundle), "--data", str(cold_dataset.path), "--json", str(tmp_path / "eval.json")]
    assert main(["evaluate", *words, "--baselines", "text_knn,popularity"]) == 0
    out = capsys.readouterr().out
    for label in ("new_users: 40", "new_users · popularity", "cold_items · text_knn"):
        assert label in out
    result = json.loads((tmp_path / "eval.json").read_text())
    assert result["baseline_settings"]["text_knn"]["source"] == "tf-idf"


def test_no_target_at_all_is_an_empty_row(toy_frames: dict[str, Any], toy_model: UnifiedModel, tmp_path: Path) -> None:
    dataset = prepare_frames(**toy_frames, output=tmp_path / "data", cold_items=1e-9)
    assert any("No user has a target among the held-out items" in note for note in dataset.manifest.notes)
    export_model(toy_model, dataset, tmp_path / "bundle")
    result = evaluate_bundle(tmp_path / "bundle", dataset, baselines="text_knn")
    row = result["segments"]["cold_items"]
    assert row == {"num_users": 0, "num_targets": 0, "meaning": row["meaning"]}
