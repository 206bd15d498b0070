"""`recsys export`, `recsys recommend` and `recsys similar`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.index.transitions import transition_matrix
from recsys.model import UnifiedModel
from recsys.pipelines.cli import main
from recsys.pipelines.export import export, export_model
from recsys.pipelines.item_graphs import item_graphs
from recsys.retrieval.recommender import Recommender


@pytest.fixture
def checkpoint(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path: Path) -> Path:
    """The toy model as a checkpoint of `recsys fit`."""
    return write_checkpoint(tmp_path / "best.ckpt", toy_model, toy_dataset.manifest.data_hash)


def write_checkpoint(path: Path, model: UnifiedModel, data_hash: str) -> Path:
    meta = {"config": model.config.to_dict(), "data_hash": data_hash}
    weights = {f"net.{name}": weight for name, weight in model.state_dict().items()}
    torch.save({"state_dict": weights, "recsys": meta}, path)
    return path


def test_a_checkpoint_becomes_a_bundle_that_answers(
    checkpoint: Path, toy_dataset: Dataset, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--checkpoint", str(checkpoint), "--data", str(toy_dataset.path), "--output", str(tmp_path / "b")]
    assert main(["export", *arguments, "--histories"]) == 0
    assert "item graphs and calibration" in capsys.readouterr().err  # the progress
    ours, theirs = Recommender.load(tmp_path / "b"), Recommender.load(toy_bundle)
    assert ours.recommend("u7", at=1_702_000_000).hits == theirs.recommend("u7", at=1_702_000_000).hits
    assert main(["export", *arguments]) == 0  # an older bundle is replaced
    assert Bundle.open(tmp_path / "b").histories is None


def test_what_the_bundle_says_of_itself(toy_bundle: Path, toy_dataset: Dataset):
    manifest = json.loads((toy_bundle / "bundle.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == ("recsys-bundle", 1)
    assert manifest["data_hash"] == toy_dataset.manifest.data_hash
    assert manifest["model_hash"] == manifest["files"]["model/model.safetensors"]
    assert manifest["actions"] == ["click", "hide", "like"]
    assert manifest["positives"] == ["click", "like"]
    assert manifest["surfaces"] == ["", "home", "mail"]
    assert manifest["clock"] == "real"
    assert manifest["max_timestamp"] == int(toy_dataset.events.timestamp.max())
    assert manifest["item_id_type"] == "String"
    files = {path.relative_to(toy_bundle).as_posix() for path in toy_bundle.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "bundle.json"}
    assert not any(path.suffix in (".pkl", ".pickle", ".pt", ".ckpt") for path in toy_bundle.rglob("*"))
    text = toy_dataset.text_transform
    assert (toy_bundle / "text").is_dir() == (text is not None)


def test_the_training_graph_has_not_seen_what_is_held_out(toy_bundle: Path, toy_dataset: Dataset):
    events, positive = toy_dataset.events, toy_dataset.is_positive()
    keep, offsets = [], [0]
    for user, end in enumerate(toy_dataset.train_end.tolist()):
        first = int(events.offsets[user])
        keep += range(first, first + end)
        offsets.append(len(keep))
    expected = {
        "graph_train": ([events.item[keep], positive[keep]], offsets),
        "graph_now": ([events.item, positive], events.offsets.tolist()),
    }
    bundle = Bundle.open(toy_bundle)
    for name, (columns, ends) in expected.items():
        matrix = transition_matrix(np.array(ends), *columns, num_items=30)
        graph = bundle.graph_train if name == "graph_train" else bundle.graph_now
        score = graph.scores(torch.arange(30)[:, None], {"transition": 1.0}).numpy()
        assert score == pytest.approx(np.log1p(100 * scipy.sparse.csr_matrix(matrix).toarray()), abs=1e-5), name
    train, now = item_graphs(toy_dataset)
    assert train.num_edges < now.num_edges


def test_a_checkpoint_of_other_data_is_refused(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", toy_model, "f" * 64)
    with pytest.raises(InputError, match=r"best.ckpt was not trained on .*data hash ffffffffffff"):
        export(checkpoint, toy_dataset.path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_unknown_index_leaves_nothing_behind(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path: Path):
    with pytest.raises(InputError, match="--index annoy: there is no index kind 'annoy'; choose one of exact"):
        export_model(toy_model, toy_dataset, tmp_path / "bundle", index="annoy")
    assert list(tmp_path.iterdir()) == []


def test_faiss_finds_what_exact_search_finds(
    toy_model: UnifiedModel, toy_dataset: Dataset, toy_bundle: Path, tmp_path: Path
):
    pytest.importorskip("faiss")
    export_model(toy_model, toy_dataset, tmp_path / "bundle", histories=True, index="flat")
    ours, exact = Recommender.load(tmp_path / "bundle"), Recommender.load(toy_bundle)
    for user in ("u1", "u7"):
        page, expected = ours.recommend(user, at=1_702_000_000), exact.recommend(user, at=1_702_000_000)
        assert page.item_ids == expected.item_ids


def test_recommend_shows_titles_and_writes_json(toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "answer.json"
    words = ["recommend", "--bundle", str(toy_bundle), "--user", "u7", "--k", "4", "--at", "1702000000"]
    assert main([*words, "--retrievers", "memory,dense", "--json", str(output)]) == 0
    shown = capsys.readouterr().out
    answer: dict[str, Any] = json.loads(output.read_text())
    page = Recommender.load(toy_bundle).recommend("u7", k=4, at=1_702_000_000, retrievers=("memory", "dense"))
    assert [hit["item_id"] for hit in answer["hits"]] == page.item_ids
    assert answer["hits"][0]["title"] == f"title {page[0].item_id[1:]}"
    assert answer["hits"][0]["actions"] == pytest.approx(page[0].actions, abs=1e-5)
    assert answer["num_reachable"] == page.num_reachable
    for hit in answer["hits"]:
        assert hit["item_id"] in shown
        assert hit["title"] in shown


def test_recommend_says_which_events_an_item_owes_its_place_to(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "answer.json"
    words = ["recommend", "--bundle", str(toy_bundle), "--user", "u7", "--k", "3", "--at", "1702000000", "--why"]
    assert main([*words, "--retrievers", "dense,memory", "--json", str(output)]) == 0
    shown = capsys.readouterr().out
    rec = Recommender.load(toy_bundle)
    for place, hit in enumerate(json.loads(output.read_text())["hits"], start=1):
        effects = rec.explain("u7", hit["item_id"], retriever=hit["retriever"], at=1_702_000_000).effects
        best = [effect for effect in effects if effect.score_change > 0][:2]
        assert [why["item_id"] for why in hit["why"]] == [effect.item_id for effect in best]
        assert f"{place}: because of " + (f"title {best[0].item_id[1:]} (+" if best else "no event") in shown


def test_recommend_answers_for_a_stranger_with_a_note(toy_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["recommend", "--bundle", str(toy_bundle), "--user", "[bold]nobody"]) == 0
    assert "note: user '[bold]nobody' is not in this bundle" in capsys.readouterr().out


def test_similar_shows_the_neighbours(toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "answer.json"
    assert main(["similar", "--bundle", str(toy_bundle), "--item", "i3", "--k", "3", "--json", str(output)]) == 0
    assert "title 3" in capsys.readouterr().out
    page = Recommender.load(toy_bundle).similar_items("i3", 3)
    assert [hit["item_id"] for hit in json.loads(output.read_text())["hits"]] == page.item_ids
    assert main(["similar", "--bundle", str(toy_bundle), "--item", "i77"]) == 2
    assert "item 'i77' is not in the catalogue" in capsys.readouterr().err


def test_a_user_without_stored_histories_is_one_line(
    toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    export_model(toy_model, toy_dataset, tmp_path / "bundle")
    capsys.readouterr()  # its progress
    assert main(["recommend", "--bundle", str(tmp_path / "bundle"), "--user", "u1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "export with --histories" in error
