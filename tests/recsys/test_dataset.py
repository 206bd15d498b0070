"""A prepared dataset as it is read: refused when a byte is wrong, and equal to what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset, offsets_of
from recsys.errors import InputError
from recsys.manifest import Manifest
from recsys.pipelines.prepare.build import prepare_frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    count = 300
    events = pl.DataFrame(
        {
            "user_id": [f"u{at}" for at in rng.integers(0, 25, count)],
            "item_id": rng.integers(100, 130, count),
            "timestamp": 1_600_000_000 + rng.integers(0, 10**6, count),
            "action": [["", "click", "click+like", "hide"][at] for at in rng.integers(0, 4, count)],
        }
    )
    items = pl.DataFrame({"item_id": np.arange(95, 125), "title": [f"word{at % 7} thing{at % 3}" for at in range(30)]})
    slates = pl.DataFrame(
        {
            "slate_id": [f"s{at}" for at in range(40)],
            "user_id": [f"u{at}" for at in rng.integers(0, 30, 40)],
            "timestamp": 1_600_000_000 + rng.integers(0, 10**6, 40),
            "item_ids": [rng.integers(100, 130, 1 + at % 4).tolist() for at in range(40)],
            "actions": [[["click", "none"][place % 2] for place in range(1 + at % 4)] for at in range(40)],
            "page": [f"p{at}" for at in range(40)],
        }
    )
    output = tmp_path_factory.mktemp("dataset") / "data"
    prepare_frames(events, items, impressions=slates, output=output)
    return output


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "data")
    return tmp_path / "data"


PARTS = [
    "events.parquet", "users.parquet", "items.parquet", "splits.parquet", "slates.parquet",
    "content.safetensors", "sparse_text.safetensors", "text/text_svd.json", "text/text_svd.safetensors",
]  # fmt: skip


def test_every_file_is_in_the_manifest(folder: Path) -> None:
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(Dataset.open(folder).manifest.files) == set(PARTS) == there - {"manifest.json"}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("harm", ["missing", "truncated", "one bit"])
def test_harmed_part_is_refused_and_named(copy: Path, part: str, harm: str) -> None:
    path = copy / part
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[:20] + bytes([content[20] ^ 4]) + content[21:])
    with pytest.raises(InputError, match=f"{part} (is missing|was truncated or changed)") as error:
        Dataset.open(copy)
    assert "\n" not in str(error.value) and "recsys prepare" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"format": "other"}, "not the manifest of a prepared dataset"),
        ({"positives": ["hide"]}, "its data hash does not fit"),
        ({"split": {"kind": "time", "valid_from": 1, "test_from": 2}}, "its data hash does not fit"),
        ({"files": {}}, "its data hash does not fit"),
    ],
)
def test_changed_manifest_is_refused(copy: Path, change: dict[str, object], message: str) -> None:
    raw = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(InputError, match=message):
        Dataset.open(copy)


def test_what_is_no_dataset_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a prepared dataset"):
        Dataset.open(tmp_path / "nowhere")
    (copy / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Dataset.open(copy)
    (copy / "manifest.json").write_text(json.dumps({"format": "recsys-data", "format_version": 1}))
    with pytest.raises(InputError, match="has no 'data_hash'"):
        Dataset.open(copy)


def test_moved_dataset_opens(copy: Path, folder: Path) -> None:
    assert Dataset.open(str(copy)).manifest == Manifest.read(folder)


def test_arrays_agree_with_the_tables(folder: Path) -> None:
    data = Dataset.open(folder)
    stored = pl.read_parquet(folder / "events.parquet")
    log = data.events
    assert len(log) == data.num_events == stored.height
    assert np.repeat(np.arange(data.num_users), np.diff(log.offsets)).tolist() == stored["user"].to_list()
    for name in ("item", "timestamp", "yes", "known", "surface"):
        column = getattr(log, name)
        assert column.dtype == np.int64 and column.tolist() == stored[name].to_list()
    assert log.value.dtype == np.float32 and np.isnan(log.value).all()
    assert data.manifest.positive_mask == 0b101  # click, hide, like
    assert data.is_positive().tolist() == [bool(yes & 0b101) for yes in stored["yes"]]
    history = log.history(3, 2)
    assert history.item.tolist() == stored.filter(pl.col("user") == 3)["item"].head(2).to_list()
    assert repr(data).startswith("Dataset(")


def test_slates_agree_with_the_table(folder: Path) -> None:
    data = Dataset.open(folder)
    stored = pl.read_parquet(folder / "slates.parquet")
    log = data.slates
    assert log is not None and len(log) == data.manifest.num_slates == stored.height == 40
    assert np.diff(log.offsets).tolist() == stored["items"].list.len().to_list()
    assert log.item.tolist() == stored["items"].explode().to_list()
    assert log.yes.tolist() == stored["yes"].explode().to_list()
    assert log.time.tolist() == np.repeat(log.timestamp, np.diff(log.offsets)).tolist()  # no times were given
    assert (
        np.diff(log.user_offsets)
        == offsets_of(log.user, data.num_users)[1:] - offsets_of(log.user, data.num_users)[:-1]
    ).all()
    assert sorted(stored["page"]) == sorted(f"p{at}" for at in range(40))  # unknown columns are kept
    in_order = list(zip(log.user.tolist(), log.timestamp.tolist(), strict=True))
    assert in_order == sorted(in_order)


def test_items_without_a_row_have_no_content(folder: Path) -> None:
    data = Dataset.open(folder)
    assert data.num_items == 35 and data.items.height == 35
    assert data.item_ids.to_list()[:30] == list(range(95, 125))  # the order of the items table
    assert data.items["title"][30:].null_count() == 5
    assert data.content is not None and not data.content[30:].any() and data.content[:30].any(axis=1).all()
    assert data.manifest.counts["items_without_row"] == 5
    assert data.sparse_text is not None and data.sparse_text.shape[0] == 35


def test_vocabulary_speaks_the_callers_words(folder: Path) -> None:
    words = Dataset.open(folder).vocabulary
    assert words.actions == ("click", "hide", "like") and words.clock == "real"
    assert words.items.index([95, "96", "nothing"]).tolist() == [0, 1, -1]
    assert words.action_mask("click+like") == 0b101


def test_data_without_slates_and_text(tmp_path: Path) -> None:
    events = pl.DataFrame({"user_id": [1, 1], "item_id": [5, 6], "timestamp": [1, 2], "action": "click"})
    data = prepare_frames(events, output=tmp_path / "data")
    assert data.slates is None and data.content is None and data.sparse_text is None and data.text_transform is None
    assert data.items.to_dict(as_series=False) == {"item_id": [5, 6]}
    assert data.users.to_dict(as_series=False) == {"user_id": [1]}
    assert any("No user has a validation target" in note for note in data.manifest.notes)
