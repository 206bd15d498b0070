"""Candidate files: columns, types, filters, the same lists as the recommender's, and metrics taken from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.pipelines.candidates import candidates
from recsys.pipelines.export import export_model
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.user_shard import UserShard
from recsys.recent import recent_positives
from recsys.retrieval.memory import MemoryRetriever, RecentItems
from recsys.retrieval.recommender import Recommender

NAMES = ["user_id", "item_ids", "retriever", "retrieval_scores"]


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("*.parquet")))


@pytest.mark.parametrize("retrievers", ["dense", "memory", "memory,dense"])
def test_lists_are_those_of_the_recommender(
    toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path, retrievers: str
) -> None:
    rank = 0 if retrievers == "memory" else 4
    candidates(
        toy_bundle, toy_dataset.path, tmp_path, k=9, rank=rank, shard_users=9, batch_users=4, retrievers=retrievers
    )
    table = read(tmp_path)
    assert table["user_id"].to_list() == toy_dataset.user_ids.to_list()
    assert len(list(tmp_path.glob("*.parquet"))) == math.ceil(len(table) / 9)
    rec, by_labels = Recommender.load(toy_bundle), set()
    for row in table.iter_rows(named=True):
        page = rec.recommend(
            row["user_id"], k=9, at=toy_dataset.manifest.max_timestamp, retrievers=retrievers.split(",")
        )
        assert row["item_ids"] == page.item_ids
        assert row["retriever"] == [hit.retriever for hit in page]
        by_labels |= set(row["retriever"])
        np.testing.assert_allclose(row["retrieval_scores"], [hit.score for hit in page], atol=1e-5)
        for action in rec.actions if rank else ():
            expected = [hit.actions[action] for hit in page[:4]]
            np.testing.assert_allclose(row[f"prob_{action}"][:4], expected, atol=1e-5)
            assert row[f"prob_{action}"][4:] == [None] * len(page[4:])
        if rank:
            positive = [sum(hit.actions[a] for a in toy_dataset.manifest.positives) for hit in page[:4]]
            np.testing.assert_allclose(row["rank_scores"][:4], positive, atol=1e-5)
    assert by_labels == set(retrievers.split(","))


def test_columns_are_in_the_types_of_the_data(toy_frames: Any, toy_model: UnifiedModel, tmp_path: Path) -> None:
    number = pl.col("item_id").str.tail(-1).cast(pl.Int64) * 7 + 10**10
    frames = {name: frame.with_columns(number.alias("item_id")) for name, frame in toy_frames.items()}
    user = pl.col("user_id").str.tail(-1).cast(pl.Int32)
    frames["interactions"] = frames["interactions"].with_columns(user.alias("user_id"))
    dataset = prepare_frames(**frames, output=tmp_path / "data")
    export_model(toy_model, dataset, tmp_path / "bundle")
    candidates(tmp_path / "bundle", dataset.path, tmp_path / "numbers", k=5, rank=2)
    table = read(tmp_path / "numbers")
    probabilities = [f"prob_{action}" for action in dataset.manifest.actions]
    assert table.columns == [*NAMES, "rank_scores", *probabilities]
    floats = pl.List(pl.Float32)
    assert table.schema["user_id"] == pl.Int32 and table.schema["item_ids"] == pl.List(pl.Int64)
    assert table["user_id"].to_list() == dataset.user_ids.to_list()
    assert all(table.schema[name] == floats for name in ("retrieval_scores", "rank_scores", *probabilities))
    assert table.schema["retriever"] == pl.List(pl.String)
    assert set(table["item_ids"].explode()) <= set(dataset.item_ids)


def test_text_ids_stay_text(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    candidates(toy_bundle, toy_dataset.path, tmp_path, k=5)
    table = read(tmp_path)
    assert table.columns == NAMES
    assert table.schema["user_id"] == pl.String and table.schema["item_ids"] == pl.List(pl.String)


def test_k_beyond_the_catalogue_returns_what_is_left(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    candidates(toy_bundle, toy_dataset.path, tmp_path, k=1000, rank=1000)
    events = toy_dataset.events
    for user, row in enumerate(read(tmp_path).iter_rows(named=True)):
        seen = set(toy_dataset.item_ids.gather(events.history(user).item))
        assert set(row["item_ids"]) == set(toy_dataset.item_ids) - seen
        assert len(row["item_ids"]) == len(row["retriever"]) == len(row["rank_scores"]) == 30 - len(seen)
        assert None not in row["rank_scores"]
        assert row["retrieval_scores"] == sorted(row["retrieval_scores"], reverse=True)


@pytest.mark.parametrize("kind", ["parquet", "csv", "txt"])
def test_chosen_users_and_items(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path, kind: str) -> None:
    def write(name: str, column: str, ids: list[str]) -> Path:
        path = tmp_path / f"{name}.{kind}"
        if kind == "txt":
            path.write_text("\n".join(ids) + "\n")
        else:
            frame = pl.DataFrame({column: ids, "more": 1})
            frame.write_parquet(path) if kind == "parquet" else frame.write_csv(path)
        return path

    users = write("users", "user_id", ["u7", "u3", "u31", "nobody", "u3"])
    allow = write("allow", "item_id", [f"i{i}" for i in range(25)] + ["nothing"])
    exclude = write("exclude", "item_id", ["i0", "i9", "i20"])
    everybody, some = tmp_path / "everybody", tmp_path / "some"
    candidates(toy_bundle, toy_dataset.path, everybody, k=30)
    candidates(toy_bundle, toy_dataset.path, some, k=6, users=users, allow=allow, exclude=exclude, shard_users=2)
    full = {row["user_id"]: row["item_ids"] for row in read(everybody).iter_rows(named=True)}
    table = read(some)
    assert set(table["user_id"]) == {"u7", "u3", "u31"} and len(table) == 3
    left = {f"i{i}" for i in range(25)} - {"i0", "i9", "i20"}
    for row in table.iter_rows(named=True):
        assert row["item_ids"] == [item for item in full[row["user_id"]] if item in left][:6]


def test_nothing_left_is_an_empty_list(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(toy_dataset.item_ids))
    candidates(toy_bundle, toy_dataset.path, tmp_path / "out", k=5, rank=2, exclude=tmp_path / "all.txt")
    table = read(tmp_path / "out")
    assert len(table) == toy_dataset.num_users and table["item_ids"].list.len().max() == 0
    assert table.schema["item_ids"] == pl.List(pl.String)


def raw_targets(frame: pl.DataFrame) -> pl.DataFrame:
    """user_id, target and history of the test split, from the raw table by rules written down here once more."""
    bare = ["none", "exposure", "impression", "shown", ""]
    negative = ["hide", "dislike", "hate", "report"]
    happened = pl.col("action").str.split("+").list.eval(~pl.element().is_in(bare + negative)).list.any()
    events = (
        frame.with_row_index("row")
        .with_columns(positive=happened)
        .group_by("user_id", "item_id", "timestamp")
        .agg(pl.col("row").min(), pl.col("positive").any())
        .sort("user_id", "timestamp", "row")
        .with_columns(place=pl.int_range(pl.len()).over("user_id"))
    )
    last = events.filter("positive", pl.col("place") > 0).group_by("user_id").agg(last=pl.col("place").max())
    joined = events.join(last, on="user_id")
    target = joined.filter(pl.col("place") == pl.col("last")).select("user_id", target="item_id")
    history = joined.filter(pl.col("place") < pl.col("last")).group_by("user_id").agg(history="item_id")
    return target.join(history, on="user_id")


def test_metrics_from_files_are_those_of_the_model(
    toy_bundle: Path, toy_dataset: Dataset, toy_model: UnifiedModel, toy_frames: Any, tmp_path: Path
) -> None:
    candidates(toy_bundle, toy_dataset.path, tmp_path, k=30, split="test", batch_users=7, shard_users=16)
    truth = raw_targets(toy_frames["interactions"])
    table = truth.join(read(tmp_path), on="user_id", how="left")
    assert len(truth) > 30 and table["item_ids"].null_count() == 0
    ndcg, hits = 0.0, 0
    for row in table.iter_rows(named=True):
        assert not set(row["item_ids"]) & set(row["history"])
        assert len(set(row["item_ids"])) == len(row["item_ids"])
        rank = row["item_ids"].index(row["target"]) + 1 if row["target"] in row["item_ids"] else 999
        hits += rank <= 10
        ndcg += 1 / math.log2(rank + 1) if rank <= 10 else 0.0

    requests = toy_dataset.requests("test")
    log = toy_dataset.events
    pairs = list(zip(requests.user.tolist(), requests.end.tolist(), strict=True))
    states = toy_model.encode([log.history(user, end) for user, end in pairs])
    at, surface = torch.from_numpy(requests.timestamp), torch.from_numpy(requests.surface)
    score_QI = (toy_model.query(states, at, surface) @ toy_model.item_vectors().T).numpy()
    expected_ndcg, expected_hits = 0.0, 0
    for scores, (user, end), target in zip(score_QI, pairs, requests.target.tolist(), strict=True):
        seen = set(log.history(user, end).item.tolist())
        better = [i for i in range(len(scores)) if i not in seen and scores[i] > scores[target]]
        rank = 999 if target in seen else len(better) + 1
        expected_hits += rank <= 10
        expected_ndcg += 1 / math.log2(rank + 1) if rank <= 10 else 0.0
    assert len(requests) == len(truth)
    assert hits == expected_hits > 0
    assert ndcg == pytest.approx(expected_ndcg, abs=1e-9)


def test_held_out_splits_see_transitions_of_training_alone(
    toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path
) -> None:
    bundle = Bundle.open(toy_bundle)
    requests, log = toy_dataset.requests("test"), toy_dataset.events
    pairs = zip(requests.user.tolist(), requests.end.tolist(), strict=True)
    recent = recent_positives([log.history(user, end) for user, end in pairs], bundle.model.config.positive_mask, 4)
    expected = [MemoryRetriever(graph).scores(RecentItems(recent)) for graph in (bundle.graph_train, bundle.graph_now)]
    assert not torch.equal(*expected)
    candidates(toy_bundle, toy_dataset.path, tmp_path, k=30, split="test", retrievers="memory")
    table = read(tmp_path).explode("item_ids", "retriever", "retrieval_scores")
    row = np.searchsorted(requests.user, toy_dataset.user_index(table["user_id"]))
    ours = expected[0].numpy()[row, toy_dataset.item_index(table["item_ids"])]
    np.testing.assert_allclose(table["retrieval_scores"], ours, atol=1e-5)


def test_newer_data_is_matched_by_name(toy_bundle: Path, toy_dataset: Dataset, toy_frames: Any, tmp_path: Path) -> None:
    first = pl.DataFrame({"user_id": ["new"], "item_id": ["i500"], "timestamp": [1], "action": ["buy+click"]})
    strange = first.with_columns(surface=pl.lit("shop"))
    frames = {"interactions": pl.concat([strange, toy_frames["interactions"]]), "items": toy_frames["items"].reverse()}
    newer = prepare_frames(**frames, output=tmp_path / "data")
    assert newer.item_ids.to_list() != toy_dataset.item_ids.to_list() and newer.num_items == 31
    at = toy_dataset.manifest.max_timestamp
    candidates(toy_bundle, newer.path, tmp_path / "newer", k=30, rank=5, at=at)
    candidates(toy_bundle, toy_dataset.path, tmp_path / "same", k=30, rank=5)
    table, same = read(tmp_path / "newer"), read(tmp_path / "same")
    assert table["user_id"].to_list() == ["new", *same["user_id"]]
    assert table["item_ids"].list.len()[0] == 30  # the item of the only event is none of the bundle's
    assert table["item_ids"][1:].to_list() == same["item_ids"].to_list()
    for name in ("retrieval_scores", "rank_scores"):
        close = (table[name][1:].explode() - same[name].explode()).abs().max()
        assert close is not None and close < 1e-5
    with pytest.raises(InputError, match="is not the dataset of bundle"):
        candidates(toy_bundle, newer.path, tmp_path / "test", split="test")
    other = prepare_frames(first.with_columns(timestamp=1_700_000_000), output=tmp_path / "other")
    with pytest.raises(InputError, match="knows none of the 1 items of .*other; give the dataset that"):
        candidates(toy_bundle, other.path, tmp_path / "lists")
    with pytest.raises(InputError, match="--at 4611686018427387904 is too large"):
        candidates(toy_bundle, toy_dataset.path, tmp_path / "lists", at=2**62)
    assert not (tmp_path / "lists").exists()


def test_a_shard_reads_its_users_only(toy_dataset: Dataset) -> None:
    chosen = np.array([2, 3, 11, 38])
    shard = UserShard(toy_dataset, chosen)
    assert shard.user_ids.to_list() == toy_dataset.user_ids.gather(chosen).to_list()
    for split in ("validation", "test", "now"):
        whole, part = toy_dataset.requests(split), shard.requests(split)
        mine = np.isin(whole.user, chosen)
        assert (chosen[part.user] == whole.user[mine]).all() and mine.any()
        for name in ("end", "target", "timestamp", "surface"):
            assert (getattr(part, name) == getattr(whole, name)[mine]).all()
    for row, user in enumerate(chosen.tolist()):
        for name in ("item", "timestamp", "yes", "known", "surface", "time_known"):
            ours, theirs = (
                getattr(log.history(n), name) for log, n in ((shard.events, row), (toy_dataset.events, user))
            )
            assert (ours == theirs).all() and len(ours) == len(theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "--k must be at least 1, got 0"),
        ({"shard_users": 0}, "--shard-users must be at least 1"),
        ({"split": "train"}, "there is no split 'train'; choose now, validation or test"),
        ({"split": "test", "at": 5}, "--at sets the time of the split now"),
        ({"retrievers": "dense,oracle"}, "there is no retriever 'oracle'"),
        ({"users": Path("no.csv")}, "--users: no.csv is no file"),
    ],
)
def test_bad_input_is_one_line(
    toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        candidates(toy_bundle, toy_dataset.path, tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
