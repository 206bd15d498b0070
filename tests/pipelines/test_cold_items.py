"""Items held out of training: which they are, that nothing of them trains, and what their targets are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.index.item_graph import TRANSITION, ItemGraph
from recsys.model import UnifiedModel
from recsys.objective import Objective
from recsys.pipelines.cli import main
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.item_graphs import item_graphs
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.prepare.slates import TEST
from recsys.pipelines.prepare.splits import held_out_items

SHARE = 0.2


def slates_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Three slates per user, one after a third, two thirds and all of the user's events."""
    rng = np.random.default_rng(1)
    rows = []
    for user, times in frame.group_by("user_id", maintain_order=True).agg("timestamp").iter_rows():
        for place in (len(times) // 3, 2 * len(times) // 3, len(times) - 1):
            shown = [f"i{i}" for i in rng.choice(30, 6, replace=False)]
            rows.append((len(rows), user, times[place] + 10, shown, [["click"], [], [], ["like"], [], []]))
    return pl.DataFrame(rows, schema=["slate_id", "user_id", "timestamp", "item_ids", "actions"], orient="row")


@pytest.fixture(scope="module", params=["leave-one-out", "time"])
def cold(request: pytest.FixtureRequest, toy_frames: dict[str, Any], tmp_path_factory: Any) -> Dataset:
    """The toy frames and slates with a fifth of the items held out."""
    frame = toy_frames["interactions"]
    settings: dict[str, Any] = {"split": request.param, "cold_items": SHARE}
    if request.param == "time":
        valid_from, test_from = (int(frame["timestamp"].quantile(share)) for share in (0.5, 0.7))
        settings |= {"valid_from": valid_from, "test_from": test_from}
    output = tmp_path_factory.mktemp("cold") / "data"
    return prepare_frames(**toy_frames, impressions=slates_of(frame), output=output, **settings)


def held_out(dataset: Dataset) -> set[int]:
    return {
        place
        for place, item in enumerate(dataset.item_ids)
        if int(hashlib.sha256(str(item).encode()).hexdigest(), 16) / 2**256 < SHARE
    }


def test_the_same_ids_are_held_out_whatever_stands_beside_them() -> None:
    numbers = pl.Series(range(2000))
    held = held_out_items(numbers, 0.1)
    assert 150 < held.sum() < 250
    np.testing.assert_array_equal(held_out_items(numbers.cast(pl.String), 0.1), held)
    np.testing.assert_array_equal(held_out_items(numbers.reverse()[:500], 0.1), held[::-1][:500])
    assert (held_out_items(numbers, 0.3) | ~held).all()  # a larger share holds the same ones out, and more
    assert numbers.filter(held)[:4].to_list() == [9, 39, 49, 51]  # anywhere, in any version


def test_no_event_of_a_held_out_item_is_left(cold: Dataset) -> None:
    held = held_out(cold)
    assert 2 <= len(held) <= 12 and cold.manifest.counts["held_out_items"] == len(held)
    assert not held & set(cold.events.item.tolist())
    for split in ("validation", "test"):
        assert not held & set(cold.requests(split).target.tolist())
    assert not cold.train_item_counts()[sorted(held)].any()
    for graph in item_graphs(cold):
        for neighbours in _transitions(graph):
            assert not held & set(neighbours)
    slates = cold.slates
    assert slates is not None
    split_R = np.repeat(slates.split, np.diff(slates.offsets))
    holds_R = np.isin(slates.item, sorted(held))
    assert not holds_R[split_R != TEST].any() and holds_R[split_R == TEST].any()
    assert cold.manifest.counts["slate_rows_held_out"] > 0


def _transitions(graph: ItemGraph) -> list[list[int]]:
    """Sources and targets of all transitions of an item graph."""
    at, num = graph.relations.index(TRANSITION), len(graph.relations)
    edges = [
        (item, int(other))
        for item in range(graph.num_items)
        for other in graph.neighbours[graph.indptr[item * num + at] : graph.indptr[item * num + at + 1]]
    ]
    assert edges
    return [list(column) for column in zip(*edges, strict=True)]


def test_held_out_items_stay_in_the_catalogue_with_content_alone(cold: Dataset, toy_dataset: Dataset) -> None:
    from recsys.pipelines.unified_module import build_network

    held = sorted(held_out(cold))
    assert cold.item_ids.to_list() == toy_dataset.item_ids.to_list()
    np.testing.assert_array_equal(cold.content, toy_dataset.content)
    data = PreparedData(str(cold.path))
    model = build_network(data, {"dim": 16, "id_dropout": 0.0})
    assert isinstance(model, UnifiedModel)
    before = model.item_vectors()
    with torch.no_grad():
        for row in model.items.ids.parameters():
            row.add_(1.0)
    changed = (model.item_vectors() != before).any(1)
    assert not changed[held].any() and changed[cold.train_item_counts() > 0].all()
    assert before[held].abs().sum(1).gt(0).all()
    counts = torch.from_numpy(cold.train_item_counts())
    assert not set(Objective(model, counts).trained_J.tolist()) & set(held)  # what softmax denominators run over
    examples = data.examples(model.config)
    for step in range(examples.steps_per_epoch):
        batch = examples.batch(step)
        seen = [batch.events.item_T, batch.target_T, batch.start_target_F]
        seen += [] if batch.candidates is None else [batch.candidates.item_N]
        assert not set(held) & set(torch.cat(seen).tolist())


def test_cold_targets_are_each_users_last(cold: Dataset, toy_frames: dict[str, Any]) -> None:
    """From the raw table alone."""
    test_from = cold.manifest.split.get("test_from")
    held = {cold.item_ids[place] for place in held_out(cold)}
    expected = {}
    for user, events in toy_frames["interactions"].group_by("user_id", maintain_order=True):
        kept = 0
        for _, item, time, action, surface in events.sort("timestamp", maintain_order=True).iter_rows():
            if item not in held:
                kept += 1
            elif action not in ("", "hide") and (kept > 0 if test_from is None else time >= test_from):
                expected[user[0]] = (item, time, surface, kept)
    requests = cold.requests("cold")
    found = {
        cold.user_ids[int(user)]: (cold.item_ids[int(item)], int(time), cold.manifest.surfaces[int(surface)], int(end))
        for user, item, time, surface, end in zip(
            requests.user, requests.target, requests.timestamp, requests.surface, requests.end, strict=True
        )
    }
    assert found == expected and len(found) == len(requests) == cold.manifest.counts["cold_targets"] > 5
    for user, end, time in zip(requests.user, requests.end, requests.timestamp, strict=True):
        assert (cold.events.history(int(user), int(end)).timestamp <= time).all()


def test_without_the_flag_nothing_is_held_out(toy_dataset: Dataset) -> None:
    assert not toy_dataset.has_cold_targets
    with pytest.raises(InputError, match="prepare it with --cold-items"):
        toy_dataset.requests("cold")


def test_the_data_hash_tells_shares_apart(toy_frames: dict[str, Any], tmp_path: Path) -> None:
    hashes = {
        prepare_frames(**toy_frames, output=tmp_path / str(share), cold_items=share).manifest.data_hash
        for share in (None, 0.1, 0.4)
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(("share", "message"), [("0", "above 0 and below 1"), ("1.0", "above 0 and below 1")])
def test_a_share_is_between_nothing_and_everything(
    share: str, message: str, toy_frames: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_frames["interactions"].write_parquet(tmp_path / "events.parquet")
    words = ["--interactions", str(tmp_path / "events.parquet"), "--output", str(tmp_path / "data")]
    assert main(["prepare", *words, "--cold-items", share]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main(["prepare", *words, "--cold-items", "0.2"]) == 0
    assert "cold targets" in capsys.readouterr().out


def test_all_items_held_out_leaves_nothing_to_train_on(toy_frames: dict[str, Any], tmp_path: Path) -> None:
    few = toy_frames["interactions"].filter(pl.col("item_id").is_in(["i28", "i0"]))
    with pytest.raises(InputError, match="leaves no event to train on"):
        prepare_frames(few, output=tmp_path / "data", cold_items=0.999)
