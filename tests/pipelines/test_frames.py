"""The Python way: frames go through the command line's own code, and ids come back in the caller's type."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import recsys
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.cli import main
from recsys.pipelines.export import export

QUICK: dict[str, Any] = {"max_epochs": 1}


def test_frames_and_files_make_the_same_dataset(toy_frames: dict[str, Any], tmp_path: Path):
    ours = recsys.prepare(**toy_frames)
    for name, frame in toy_frames.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    flags = [word for name in toy_frames for word in (f"--{name}", str(tmp_path / f"{name}.parquet"))]
    assert main(["prepare", *flags, "--output", str(tmp_path / "data")]) == 0
    assert ours.manifest.data_hash == Dataset.open(tmp_path / "data").manifest.data_hash
    pandas = recsys.prepare(**{name: frame.to_pandas() for name, frame in toy_frames.items()})
    assert pandas.manifest.data_hash == ours.manifest.data_hash
    lazy = recsys.prepare(toy_frames["interactions"].lazy(), toy_frames["items"].lazy())
    assert lazy.manifest.data_hash == ours.manifest.data_hash


def test_settings_reach_the_preparation(toy_frames: dict[str, Any], tmp_path: Path):
    data = recsys.prepare(
        toy_frames["interactions"].rename({"item_id": "asin"}),
        columns={"item_id": "asin"},
        positive=("like",),
        output=tmp_path / "data",
    )
    assert data.manifest.positives == ("like",)
    assert Dataset.open(tmp_path / "data").manifest.data_hash == data.manifest.data_hash
    with pytest.raises(InputError, match="the output s3:/bucket/data is a URL"):
        recsys.prepare(toy_frames["interactions"], output="s3://bucket/data")
    with pytest.raises(InputError, match="psychic"):
        recsys.prepare(toy_frames["interactions"], split="psychic")


def test_a_temporary_dataset_lives_as_long_as_its_object(toy_frames: dict[str, Any]):
    data = recsys.prepare(toy_frames["interactions"])
    path = data.path
    assert path.is_dir()
    del data
    gc.collect()
    assert not path.exists()
    with pytest.raises(InputError, match="prepare has no setting 'splitt'"):
        recsys.prepare(toy_frames["interactions"], splitt="time")


def test_fit_gives_a_recommender_that_can_be_saved(
    toy_frames: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    numbers = toy_frames["interactions"].with_columns(
        pl.col("user_id").str.strip_prefix("u").cast(pl.Int32), pl.col("item_id").str.strip_prefix("i").cast(pl.UInt16)
    )
    data = recsys.prepare(numbers)
    rec = recsys.fit(data, **QUICK)
    frame = rec.recommend_frame(users=[7, 9], k=4, at=1_702_000_000)
    assert frame["user_id"].to_list() == [7] * 4 + [9] * 4
    assert frame.schema["user_id"] == pl.Int32
    assert frame.schema["item_id"] == pl.UInt16
    seen = set(numbers.filter(pl.col("user_id") == 7)["item_id"])
    assert not seen & set(frame["item_id"][:4])
    assert frame["prob_like"].is_between(0, 1).all()
    result = recsys.evaluate(rec, data, baselines=["popularity"])
    assert set(result["retrieval"]) == set(rec.bundle.retrievers) > {"dense", "memory", "generative", "hybrid"}
    assert 0 <= result["retrieval"]["dense"]["ndcg@10"] <= 1
    assert list(result["baselines"]) == ["popularity"]
    folder = rec.bundle.path
    export(folder.parent / "checkpoints" / "best.ckpt", data.path, tmp_path / "exported", histories=True)
    assert rec.bundle.manifest == recsys.Recommender.load(tmp_path / "exported").bundle.manifest
    assert rec.bundle.manifest["hybrid_weights"] and "tokenizers/sids.json" in rec.bundle.manifest["files"]
    rec.save(tmp_path / "bundle")
    assert recsys.Recommender.load(tmp_path / "bundle").recommend_frame([7, 9], 4, at=1_702_000_000).equals(frame)
    del rec
    gc.collect()
    assert not folder.exists()


def test_fit_names_a_wrong_setting(toy_dataset: Dataset):
    with pytest.raises(InputError, match="fit has no setting 'epochs'"):
        recsys.fit(toy_dataset, epochs=1)
