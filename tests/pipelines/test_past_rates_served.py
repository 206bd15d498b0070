"""A model with past rates from its training to its bundle: the same figures everywhere, calibrated alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recsys.bundle import Bundle, checked_manifest
from recsys.calibration import Calibration
from recsys.errors import InputError
from recsys.events import EventLog
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.past_counts import PastLog
from recsys.past_rates import past_tensor
from recsys.pipelines.candidates import candidates
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.export import export_model
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.prepare.build import prepare_frames
from recsys.ranking import predict_slates
from recsys.retrieval.recommender import Recommender


@pytest.fixture(scope="module")
def dataset(toy_frames, tmp_path_factory):
    """The toy data split by time, a slate at every second event."""
    events = toy_frames["interactions"]
    rng = np.random.default_rng(1)
    rows = []
    for number, (user, time) in enumerate(events.select("user_id", "timestamp").iter_rows()):
        if number % 2:
            items = [f"i{i}" for i in rng.choice(29, 4, replace=False)]
            labels = rng.choice(["click", "none", "like"], 4).tolist()
            seconds = [40.0 if item < "i2" else 3.0 for item in items[:3]] + [None]
            rows.append((f"s{number}", user, time, items, labels, ["home", "mail"] * 2, seconds))
    schema = ["slate_id", "user_id", "timestamp", "item_ids", "actions", "surfaces", "values"]
    valid_from, test_from = (int(events["timestamp"].quantile(share)) for share in (0.5, 0.7))
    return prepare_frames(
        events,
        toy_frames["items"],
        impressions=pl.DataFrame(rows, schema=schema, orient="row"),
        output=tmp_path_factory.mktemp("rates") / "data",
        split="time",
        valid_from=valid_from,
        test_from=test_from,
    )


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    manifest, content = dataset.manifest, dataset.content
    config = ModelConfig(
        num_items=dataset.num_items, num_actions=len(manifest.actions), num_surfaces=len(manifest.surfaces),
        positive_mask=manifest.positive_mask, content_dim=0 if content is None else content.shape[1],
        dim=16, window=12, past_rates=True,
    )  # fmt: skip
    model = UnifiedModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    counts = torch.from_numpy(dataset.train_item_counts())
    model.items.set_catalogue(None if content is None else torch.from_numpy(content), counts > 0)
    return model.eval()


@pytest.fixture(scope="module")
def bundle(model, dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("rates") / "bundle"
    export_model(model, dataset, path, histories=True)
    return path


def by_row(model, dataset, split):
    found = predict_slates(model, dataset, split)
    return dict(zip(found.row_R.tolist(), found.logit_RA, strict=True))


def test_events_at_or_after_a_slate_change_nothing_bit_for_bit(model, dataset):
    """Nobody's events do, not even other users'."""
    before, slates, log = by_row(model, dataset, 2), dataset.slates, dataset.events
    for slate in np.flatnonzero(slates.split == 2)[::9]:
        late = log.timestamp >= slates.timestamp[slate]
        changed = replace(log, yes=np.where(late, 1, log.yes), item=np.where(late, 3, log.item))
        rows = range(slates.offsets[slate], slates.offsets[slate + 1])
        dataset.__dict__["events"] = changed
        try:
            after = by_row(model, dataset, 2)
        finally:
            dataset.__dict__["events"] = log
        assert all(np.array_equal(before[row], after[row]) for row in rows)


def test_what_others_did_before_does_change_a_slate(model, dataset):
    before, slates, log = by_row(model, dataset, 2), dataset.slates, dataset.events
    slate = np.flatnonzero(slates.split == 2)[-1]
    owner = np.repeat(np.arange(dataset.num_users), np.diff(log.offsets))
    others = (log.timestamp < slates.timestamp[slate]) & (owner != slates.user[slate])
    dataset.__dict__["events"] = replace(log, yes=np.where(others, 0, log.yes))
    try:
        after = by_row(model, dataset, 2)
    finally:
        dataset.__dict__["events"] = log
    assert not np.allclose(before[slates.offsets[slate]], after[slates.offsets[slate]], atol=1e-3)


def test_the_bundle_serves_rates_of_everything_known_calibrated(bundle, model, dataset):
    rec, at = Recommender.load(bundle), dataset.manifest.max_timestamp + 60
    calibration = Calibration.load(bundle / "calibration.safetensors")
    assert not calibration.is_identity
    known: EventLog = dataset.events
    past = PastLog(known, len(dataset.manifest.actions), len(dataset.manifest.surfaces))
    for user in ("u1", "u30"):
        for surface in ("mail", None):
            page = rec.recommend(user, k=6, at=at, surface=surface)
            item = torch.from_numpy(dataset.item_index(page.item_ids))[None]
            states = model.encode([known.history(int(dataset.user_index([user])[0]))])
            place = torch.full_like(item, dataset.vocabulary.surface_index(surface))
            now = torch.tensor([at])
            with torch.inference_mode():
                logits = model.rank(states, item, now, place, past_tensor(past, states.past_BX, item, now, place))
            expected = torch.sigmoid(
                logits[0] * torch.from_numpy(calibration.scale_A) + torch.from_numpy(calibration.offset_A)
            )
            found = [list(hit.actions.values()) for hit in page]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_candidates_rank_as_of_their_requests(bundle, model, dataset, tmp_path):
    """Now with everything known, as the recommender; test with what happened before each request."""
    rec, at = Recommender.load(bundle), dataset.manifest.max_timestamp
    for split in ("now", "test"):
        candidates(bundle, dataset.path, tmp_path / split, k=5, rank=5, split=split)
    served = {name: pl.read_parquet(sorted((tmp_path / name).glob("*.parquet"))) for name in ("now", "test")}
    for row in served["now"].head(8).iter_rows(named=True):
        page = rec.recommend(row["user_id"], k=5, at=at)
        for action in rec.actions:
            np.testing.assert_allclose(row[f"prob_{action}"], [hit.actions[action] for hit in page], atol=1e-5)
    past, calibration = PastLog.of(dataset), rec.bundle.calibration
    requests = dataset.requests("test")
    for number, row in enumerate(served["test"].head(8).iter_rows(named=True)):
        history = dataset.events.history(int(requests.user[number]), int(requests.end[number]))
        item = torch.from_numpy(dataset.item_index(row["item_ids"]))[None]
        now = torch.from_numpy(requests.timestamp[number : number + 1])
        place = torch.full_like(item, int(requests.surface[number]))
        states = model.encode([history])
        with torch.inference_mode():
            logits = model.rank(states, item, now, place, past_tensor(past, states.past_BX, item, now, place))
        expected = calibration.probabilities(logits)[0]
        for action, name in enumerate(rec.actions):
            np.testing.assert_allclose(row[f"prob_{name}"], expected[:, action], atol=1e-5)


def test_evaluate_reports_the_log_loss_before_and_after(bundle, dataset):
    rows = evaluate_bundle(bundle, dataset, split="validation")["ranking"]
    gains = [row["logloss_uncalibrated"] - row["logloss"] for row in rows.values()]
    assert rows and min(gains) > -1e-6 and max(gains) > 1e-3


def test_a_bundle_without_its_counts_is_refused(bundle, tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(bundle, broken)
    assert Bundle.open(broken).past is not None
    manifest = checked_manifest(broken)
    from recsys.bundle import _checksum

    del manifest["files"]["past_counts.safetensors"]
    (broken / "past_counts.safetensors").unlink()
    (broken / "bundle.json").write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}))
    with pytest.raises(InputError, match=r"there is no past_counts\.safetensors"):
        Bundle.open(broken)


def test_fit_learns_with_them_and_its_checkpoint_loads(dataset, tmp_path):
    settings = {
        "dim": 16,
        "lr": 1e-2,
        "past_rates": True,
        "cross_layers": 1,
        "pairwise_weight": 0.5,
        "regress_value": True,
    }
    best = fit_dataset(
        dataset, tmp_path / "run", **settings, max_epochs=2, quiet=True, enable_progress_bar=False, logger=False
    )
    trained, _ = load_model(best)
    assert trained.config.past_rates and trained.config.cross_layers == 1
    head = trained.action_head
    assert float(head.past_scale_F.min()) >= 0.25 and float(head.past_mean_F.abs().max()) > 0
    assert float(head.cross[0].up.weight.detach().abs().max()) > 0
    export_model(trained, dataset, tmp_path / "bundle")
    result = evaluate_bundle(tmp_path / "bundle", dataset)
    assert set(result["ranking"]) == set(dataset.manifest.actions)
    slates = dataset.slates
    rows = (slates.split[np.repeat(np.arange(len(slates)), np.diff(slates.offsets))] == 2) & ~np.isnan(slates.value)
    assert result["value"]["num_rows"] == rows.sum() > 0
    assert result["value"]["spearman"] > 0.1  # two epochs of a small model on what an item alone decides
