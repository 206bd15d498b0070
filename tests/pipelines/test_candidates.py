"""Candidate files: columns, types, filters, and the same lists as the recommender's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.candidates import candidates
from recsys.retrieval.recommender import Recommender


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("*.parquet")))


def test_lists_are_those_of_the_recommender(toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    candidates(toy_bundle, toy_dataset.path, tmp_path / "out", k=7, rank=4, shard_users=9, batch_users=4)
    table = read(tmp_path / "out")
    assert table["user_id"].to_list() == toy_dataset.user_ids.to_list()
    rec = Recommender.load(toy_bundle)
    for row in table.iter_rows(named=True):
        page = rec.recommend(row["user_id"], k=7, at=toy_dataset.manifest.max_timestamp)
        assert row["item_ids"] == page.item_ids
        assert row["retriever"] == ["dense"] * len(page)
        np.testing.assert_allclose(row["retrieval_scores"], [hit.score for hit in page], atol=1e-5)
        for action in rec.actions:
            expected = [hit.actions[action] for hit in page[:4]]
            np.testing.assert_allclose(row[f"prob_{action}"][:4], expected, atol=1e-5)
            assert row[f"prob_{action}"][4:] == [None] * len(page[4:])
