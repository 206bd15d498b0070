"""The bundle: what is loaded is what was written, or one line says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.bundle import Bundle, StoredHistories, _checksum, new_bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import EventLog
from recsys.files import sha256_file
from recsys.model import UnifiedModel


@pytest.fixture
def copy(toy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "copy"))


def rewrite(bundle: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change bundle.json as somebody would who repairs its checksum."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    change(manifest)
    manifest["checksum"] = _checksum(manifest)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def parts_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def test_everything_comes_back(toy_bundle: Path, toy_model: UnifiedModel, toy_dataset: Dataset):
    bundle = Bundle.open(toy_bundle)
    assert bundle.data_hash == toy_dataset.manifest.data_hash
    assert bundle.retrievers == ("dense", "dense_learned", "memory")
    assert bundle.items.equals(toy_dataset.items)
    assert bundle.vocabulary.actions == toy_dataset.manifest.actions
    assert bundle.vocabulary.surfaces == toy_dataset.manifest.surfaces
    assert torch.equal(bundle.vectors, toy_model.item_vectors())
    assert not bundle.model.training
    for name, weight in toy_model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], weight), name
    assert bundle.histories is not None
    assert bundle.histories.users.ids.equals(toy_dataset.user_ids)
    for name in ("offsets", "item", "timestamp", "yes", "known", "surface", "time_known"):
        assert np.array_equal(getattr(bundle.histories.events, name), getattr(toy_dataset.events, name)), name


def test_users_without_events_keep_their_place(tmp_path: Path):
    offsets = np.array([0, 0, 2, 2, 3, 3])
    column = np.arange(3, dtype=np.int64)
    events = EventLog(offsets, column, column, column, column, column, np.zeros(3, np.float32), column == 1)
    StoredHistories.write(tmp_path / "h.parquet", pl.Series(["a", "b", "c", "d", "e"]), events)
    read = StoredHistories.read(tmp_path / "h.parquet")
    assert read.users.ids.to_list() == ["a", "b", "c", "d", "e"]
    assert read.events.offsets.tolist() == offsets.tolist()
    assert read.events.history(1).item.tolist() == [0, 1]
    assert read.events.history(3).time_known.tolist() == [False]


def test_a_flipped_bit_in_any_part_is_noticed(copy: Path):
    parts = parts_of(copy)
    assert {"bundle.json", "histories.parquet", "items.parquet", "model.safetensors"} <= {part.name for part in parts}
    for part in parts:
        good = part.read_bytes()
        for place in (len(good) // 3, len(good) - 2):
            bad = bytearray(good)
            bad[place] ^= 1
            part.write_bytes(bytes(bad))
            with pytest.raises(InputError, match=r"\S"):
                Bundle.open(copy)
        part.write_bytes(good)
    Bundle.open(copy)


def test_a_changed_word_of_the_manifest_is_noticed(copy: Path):
    manifest = (copy / "bundle.json").read_text()
    assert '"hide"' in manifest
    (copy / "bundle.json").write_text(manifest.replace('"hide"', '"hype"'))
    with pytest.raises(InputError, match="bundle.json was changed after it was written"):
        Bundle.open(copy)


def test_a_missing_or_truncated_part_is_named(copy: Path):
    for part in parts_of(copy):
        good = part.read_bytes()
        part.unlink()
        with pytest.raises(InputError, match=part.name) as missing:
            Bundle.open(copy)
        part.write_bytes(good[: len(good) // 2])
        with pytest.raises(InputError, match=part.name) as short:
            Bundle.open(copy)
        assert "\n" not in str(missing.value) + str(short.value)
        part.write_bytes(good)


def test_a_file_that_is_no_part_is_refused(copy: Path):
    (copy / "index" / "more.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="more.bin is no part of this bundle"):
        Bundle.open(copy)


def test_a_part_of_another_bundle_is_refused(copy: Path, toy_model: UnifiedModel):
    with torch.no_grad():
        other = {
            name: weight + 1 if weight.is_floating_point() else weight
            for name, weight in toy_model.state_dict().items()
        }
    foreign = UnifiedModel(toy_model.config)
    foreign.load_state_dict(other)
    foreign.save(copy / "model")
    with pytest.raises(InputError, match=r"model.safetensors is not the file this bundle was written with"):
        Bundle.open(copy)


def test_parts_that_do_not_fit_together_are_refused_even_with_right_hashes(copy: Path):
    items = pl.read_parquet(copy / "items.parquet")
    items.head(5).write_parquet(copy / "items.parquet")
    rewrite(copy, lambda m: m["files"].update({"items.parquet": sha256_file(copy / "items.parquet")}))
    with pytest.raises(InputError, match="items.parquet holds 5 rows and should hold 30"):
        Bundle.open(copy)
    items.write_parquet(copy / "items.parquet")
    rewrite(copy, lambda m: m["files"].update({"items.parquet": sha256_file(copy / "items.parquet")}))
    (copy / "vectors.safetensors").write_bytes(b"no tensors")
    rewrite(copy, lambda m: m["files"].update({"vectors.safetensors": sha256_file(copy / "vectors.safetensors")}))
    with pytest.raises(InputError, match="its parts do not fit together") as error:
        Bundle.open(copy)
    assert "\n" not in str(error.value)


def test_other_format_versions_name_what_to_do(copy: Path):
    rewrite(copy, lambda m: m.update(format_version=2))
    with pytest.raises(InputError, match="format version 2, this recsys reads 1; upgrade recsys, or export again"):
        Bundle.open(copy)
    rewrite(copy, lambda m: m.update(format_version=0))
    with pytest.raises(InputError, match="format version 0, this recsys reads 1; export it again"):
        Bundle.open(copy)
    rewrite(copy, lambda m: m.update(format="recsys-data"))
    with pytest.raises(InputError, match="does not describe a bundle"):
        Bundle.open(copy)


def test_files_outside_the_bundle_are_never_read(copy: Path):
    rewrite(copy, lambda m: m["files"].update({"../secret": "0"}))
    with pytest.raises(InputError, match="a file outside of it"):
        Bundle.open(copy)


def test_what_is_no_bundle_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere is no folder; give a bundle"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no bundle.json"):
        Bundle.open(tmp_path)


def test_nothing_is_left_of_a_bundle_that_failed(tmp_path: Path):
    def write_half() -> None:
        with new_bundle(tmp_path / "bundle", {}) as folder:
            (folder / "half").write_text("")
            raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_saving_copies_and_never_replaces_other_folders(toy_bundle: Path, tmp_path: Path):
    bundle = Bundle.open(toy_bundle)
    bundle.save(tmp_path / "again")
    names = [part.relative_to(toy_bundle) for part in parts_of(toy_bundle)]
    assert [part.relative_to(tmp_path / "again") for part in parts_of(tmp_path / "again")] == names
    assert all((tmp_path / "again" / name).read_bytes() == (toy_bundle / name).read_bytes() for name in names)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(InputError, match="holds no bundle.json; choose another output folder"):
        bundle.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


def test_a_dataset_that_does_not_belong_is_refused(toy_bundle: Path, toy_dataset: Dataset):
    bundle = Bundle.open(toy_bundle)
    bundle.check_data(toy_dataset.manifest.data_hash, toy_dataset.path)
    with pytest.raises(InputError, match="other is not the dataset of bundle"):
        bundle.check_data("0" * 64, "other")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_named(toy_bundle: Path):
    with pytest.raises(InputError, match="torch finds no CUDA device"):
        Bundle.open(toy_bundle, device="cuda")
