"""A model that ranks with memory terms, from its training to its bundle: the same figures everywhere."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from recsys.bundle import Bundle
from recsys.calibration import Calibration
from recsys.errors import InputError
from recsys.memory_features import memory_features
from recsys.pipelines.candidates import candidates
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.export import export_model
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.item_graphs import item_graphs
from recsys.pipelines.prepare.build import prepare_frames
from recsys.ranking import predict_slates
from recsys.ranking_metrics import auc
from recsys.retrieval.recommender import Recommender


@pytest.fixture(scope="module")
def dataset(toy_frames, tmp_path_factory):
    """The toy data with a slate shortly after every second event."""
    events = toy_frames["interactions"]
    rng = np.random.default_rng(1)
    rows = []
    for number, (user, time) in enumerate(events.select("user_id", "timestamp").iter_rows()):
        if number % 2:
            items = [f"i{i}" for i in rng.choice(29, 4, replace=False)]
            rows.append((f"s{number}", user, time + 1, items, rng.choice(["click", "none", "like"], 4).tolist()))
    schema = ["slate_id", "user_id", "timestamp", "item_ids", "actions"]
    return prepare_frames(
        events,
        toy_frames["items"],
        impressions=pl.DataFrame(rows, schema=schema, orient="row"),
        output=tmp_path_factory.mktemp("memory") / "data",
    )


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    return fit_dataset(
        dataset, tmp_path_factory.mktemp("memory") / "run", dim=16, lr=1e-2, memory_features=True, past_rates=False,
        max_epochs=2,
        quiet=True, enable_progress_bar=False, logger=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(checkpoint, dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "bundle"
    export_model(load_model(checkpoint)[0], dataset, path, histories=True)
    return path


def test_a_checkpoint_names_its_relations(checkpoint, dataset):
    model, _ = load_model(checkpoint)
    assert model.config.relations == ("transition", "text") and model.config.memory_features
    assert float(model.action_head.past_mean_F.abs().max()) > 0
    assert float(model.action_head.wide.weight.detach().abs().max()) > 0


def logits(model, graph, dataset, user, end, item, at, surface):
    states = model.encode([dataset.events.history(user, end)])
    with torch.inference_mode():
        recent_BM = states.recent_BM[:, : model.config.recent]
        features = memory_features(graph, model.config.relations, recent_BM, item)
        return model.rank(states, item, torch.tensor([at]), torch.full_like(item, surface), features)


def test_candidates_and_recommender_read_the_graph_of_their_time(bundle, dataset, tmp_path):
    """Now: transitions of everything known. Test: those of training events."""
    rec, at = Recommender.load(bundle), dataset.manifest.max_timestamp
    model, calibration = rec.bundle.model, rec.bundle.calibration
    train, now = item_graphs(dataset)
    requests = {split: dataset.requests(split) for split in ("now", "test")}
    for split, graph in (("now", now), ("test", train)):
        candidates(bundle, dataset.path, tmp_path / split, k=5, rank=5, split=split)
        served = pl.read_parquet(sorted((tmp_path / split).glob("*.parquet")))
        for number, row in enumerate(served.head(8).iter_rows(named=True)):
            asked = requests[split].rows(slice(number, number + 1))
            item = torch.from_numpy(dataset.item_index(row["item_ids"]))[None]
            found = logits(
                model, graph, dataset, int(asked.user[0]), int(asked.end[0]), item, asked.timestamp[0], asked.surface[0]
            )
            expected = calibration.probabilities(found)[0]
            for action, name in enumerate(rec.actions):
                np.testing.assert_allclose(row[f"prob_{name}"], expected[:, action], atol=1e-5)
            if split == "now":
                page = rec.recommend(row["user_id"], k=5, at=at)
                served_now = [list(hit.actions.values()) for hit in page]
                np.testing.assert_allclose(served_now, expected, atol=1e-5)


def test_slates_are_judged_as_requests_are_answered(bundle, dataset):
    """Features made for all slate rows at once are those made for one request of the bundle."""
    loaded, slates = Bundle.open(bundle), dataset.slates
    found = predict_slates(loaded.model, dataset, 2, graph=loaded.graph_train)
    by_row = dict(zip(found.row_R.tolist(), found.logit_RA, strict=True))
    for slate in np.flatnonzero(slates.split == 2)[::5]:
        user, time = int(slates.user[slate]), int(slates.timestamp[slate])
        end = int((dataset.events.history(user).timestamp < time).sum())
        rows = np.arange(slates.offsets[slate], slates.offsets[slate + 1])
        item, surface = torch.from_numpy(slates.item[rows])[None], torch.from_numpy(slates.surface[rows])[None]
        states = loaded.model.encode([dataset.events.history(user, end)])
        at = torch.tensor([time])
        features = loaded.features(training_only=True).of(states, item, at, surface)
        expected = loaded.model.rank(states, item, at, surface, features)[0]
        np.testing.assert_allclose([by_row[row] for row in rows], expected, atol=1e-5)


def test_evaluate_and_calibration_use_them(bundle, dataset):
    model, slates = Bundle.open(bundle).model, dataset.slates
    rows = evaluate_bundle(bundle, dataset)["ranking"]
    found = predict_slates(model, dataset, 2, graph=item_graphs(dataset)[0])
    calibrated = found.calibrated_RA(Calibration.load(bundle / "calibration.safetensors"))
    for action, name in enumerate(dataset.manifest.actions):
        known = (slates.known[found.row_R] >> action & 1).astype(bool)
        yes = (slates.yes[found.row_R] >> action & 1).astype(bool)[known]
        if yes.any() and not yes.all():
            assert rows[name]["auc"] == pytest.approx(auc(yes, calibrated[known, action]), abs=1e-6)
    assert rows


def test_memory_features_need_something_to_rank(dataset, tmp_path):
    with pytest.raises(InputError, match="model.memory_features needs actions"):
        fit_dataset(dataset, tmp_path / "run", memory_features=True, use_actions=False, quiet=True)
