"""Data sets, tokenizers, checkpoints and lists of others: one line, and nothing outside is read or run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import sha256_file
from recsys.manifest import data_hash_of
from recsys.model import UnifiedModel
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.evaluation_lists import ranked_lists
from recsys.pipelines.id_list import read_ids
from recsys.pipelines.item_codes import read_codes
from recsys.tokenizers.text_svd import TextSvd


@pytest.fixture
def data(toy_dataset: Dataset, tmp_path: Path) -> Path:
    """A prepared dataset that may be changed."""
    return Path(shutil.copytree(toy_dataset.path, tmp_path / "data"))


def sign(data: Path, **changes: Any) -> None:
    """Change the manifest and make its hashes right."""
    raw = {**json.loads((data / "manifest.json").read_text()), **changes}
    if isinstance(raw["files"], dict):
        for name in raw["files"]:
            if os.path.isfile(data / name):
                raw["files"][name] = sha256_file(data / name)
        if isinstance(raw["actions"], list) and isinstance(raw["positives"], list) and isinstance(raw["split"], dict):
            raw["data_hash"] = data_hash_of(raw["files"], raw["split"], raw["actions"], raw["positives"])
    (data / "manifest.json").write_text(json.dumps(raw))


def one_line(error: pytest.ExceptionInfo[InputError]) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1_000


def test_data_outside_of_its_folder_is_not_read(data: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    files = json.loads((data / "manifest.json").read_text())["files"]
    for name in ("../secret", str(tmp_path / "secret")):
        sign(data, files={**files, name: sha256_file(tmp_path / "secret")})
        with pytest.raises(InputError, match="a file outside of it") as error:
            Dataset.open(data)
        one_line(error)
    sign(data, files=files)
    shutil.move(data / "events.parquet", tmp_path / "events.parquet")
    (data / "events.parquet").symlink_to(tmp_path / "events.parquet")
    with pytest.raises(InputError, match="events.parquet is a symbolic link"):
        Dataset.open(data)
    (data / "events.parquet").unlink()
    os.mkfifo(data / "events.parquet")
    with pytest.raises(InputError, match="events.parquet is no plain file"):
        Dataset.open(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actions", 5), ("actions", ["a", "a"]), ("positives", ["other"]), ("num_users", "3"), ("num_items", -1),
        ("num_events", 10**30), ("files", ["x"]), ("files", {"x": 1}), ("split", []), ("clock", None),
        ("clock", "sun"), ("max_timestamp", 10**30), ("max_timestamp", -(2**62)),
    ],
)  # fmt: skip
def test_a_manifest_with_odd_values_is_one_line(data: Path, name: str, value: Any):
    sign(data, **{name: value})
    with pytest.raises(InputError) as error:
        Dataset.open(data)
    one_line(error)


def test_more_events_than_the_manifest_says_are_not_read(data: Path):
    pl.DataFrame({"user": pl.repeat(0, 10**6, eager=True)}).write_parquet(data / "events.parquet")
    sign(data)
    with pytest.raises(InputError, match="events.parquet holds 1000000 rows and should hold"):
        Dataset.open(data)


def write_checkpoint(path: Path, model: UnifiedModel, **changes: Any) -> Path:
    weights = {f"net.{name}": weight for name, weight in model.state_dict().items()}
    torch.save({"state_dict": weights, "recsys": {"config": model.config.to_dict(), **changes}}, path)
    return path


def test_a_checkpoint_is_never_unpickled(toy_model: UnifiedModel, tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'done'}",)

    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": Evil(), "recsys": {}}, tmp_path / "zip.ckpt")
    for name in ("plain.ckpt", "zip.ckpt"):
        with pytest.raises(InputError, match="cannot be read as a checkpoint") as error:
            load_model(tmp_path / name)
        one_line(error)
    assert not (tmp_path / "done").exists()


def test_a_checkpoint_of_sizes_that_its_weights_lack_is_refused(toy_model: UnifiedModel, tmp_path: Path):
    config = toy_model.config.to_dict()
    load_model(write_checkpoint(tmp_path / "good.ckpt", toy_model))
    for changed, match in (
        ({**config, "num_items": 2_000_000_000}, "items.ids.weight"),
        ({**config, "num_blocks": "2"}, "must be int"),
        ([], "no checkpoint of"),
        ({"num_items": 3}, "holds no model"),
    ):
        with pytest.raises(InputError, match=match) as error:
            load_model(write_checkpoint(tmp_path / "bad.ckpt", toy_model, config=changed))
        one_line(error)
    weights = {f"net.{name}": weight for name, weight in toy_model.state_dict().items()}
    weights["net.items.ids.weight"] = torch.zeros(1, 1).expand(2_000_000_000, 16)  # four bytes in the file
    torch.save(
        {"state_dict": weights, "recsys": {"config": {**config, "num_items": 2_000_000_000}}}, tmp_path / "b.ckpt"
    )
    with pytest.raises(InputError, match="items.content_IC|fewer numbers than it declares") as error:
        load_model(tmp_path / "b.ckpt")
    one_line(error)


def test_files_that_are_no_tables_are_one_line(toy_dataset: Dataset, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes.parquet").write_bytes(b"PAR1" + b"\xff" * 500 + b"PAR1")
    pl.DataFrame({"item_id": [1.5], "codes": [[1]]}).write_parquet(tmp_path / "float.parquet")
    for path in (tmp_path / "pipe", tmp_path / "bytes.parquet", tmp_path / "float.parquet", Path("/dev/zero")):
        with pytest.raises(InputError) as error:
            read_codes(path, toy_dataset)
        one_line(error)
    for path in (tmp_path / "pipe", tmp_path / "bytes.parquet", Path("/dev/zero")):
        with pytest.raises(InputError) as error:
            ranked_lists(path, toy_dataset, "test")
        one_line(error)
        with pytest.raises(InputError) as error:
            read_ids(path, "user_id", "--users")
        one_line(error)


def test_a_text_transform_whose_parts_do_not_fit_is_one_line(toy_bundle: Path, tmp_path: Path):
    folder = Path(shutil.copytree(toy_bundle / "text", tmp_path / "text"))
    TextSvd.load(folder)
    config = next(folder.glob("*.json"))
    good, arrays = config.read_text(), load_file(next(folder.glob("*.safetensors")))
    for bad in ("[" * 100_000, "[]", "NaN", json.dumps({**json.loads(good), "vocabulary": ["one"]}), "\x80"):
        config.write_bytes(bad.encode("latin-1"))
        with pytest.raises(ValueError, match="write it again"):
            TextSvd.load(folder)
    config.write_text(good)
    save_file({**arrays, "idf": np.full_like(arrays["idf"], np.nan)}, next(folder.glob("*.safetensors")))
    with pytest.raises(ValueError, match="do not fit together"):
        TextSvd.load(folder)
