"""A bundle of somebody who means harm: hashes are right, and still nothing outside of it is read or allocated."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from recsys.bundle import Bundle, _checksum
from recsys.errors import InputError
from recsys.files import read_json, sha256_file
from recsys.index.parts import write_parts
from recsys.retrieval.bundle_retrievers import bundle_retrievers


@pytest.fixture
def copy(toy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "copy"))


def sign(bundle: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Change ``bundle.json`` and make all its hashes right."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    change(manifest)
    for name in manifest["files"]:
        if os.path.isfile(bundle / name):
            manifest["files"][name] = sha256_file(bundle / name)
    manifest["checksum"] = _checksum(manifest)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def refused(bundle: Path, match: str) -> None:
    """It does not open, quickly and in one line."""
    began = time.monotonic()
    with pytest.raises(InputError, match=match) as error:
        Bundle.open(bundle)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 30


def rewrite_tensors(file: Path, **changed: Any) -> None:
    save_file({**load_file(file), **changed}, file)


def test_a_symbolic_link_in_a_bundle_is_not_followed(copy: Path, tmp_path: Path):
    shutil.move(copy / "items.parquet", tmp_path / "items.parquet")
    (copy / "items.parquet").symlink_to(tmp_path / "items.parquet")  # the right bytes, but not in the bundle
    refused(copy, "items.parquet is a symbolic link, and links are not followed")


def test_a_linked_folder_or_manifest_is_not_followed(copy: Path, tmp_path: Path):
    shutil.move(copy / "model", tmp_path / "model")
    (copy / "model").symlink_to(tmp_path / "model")
    refused(copy, "model is a symbolic link")
    (copy / "model").unlink()
    shutil.move(tmp_path / "model", copy / "model")
    (copy / "more").symlink_to("/etc")
    refused(copy, "more is no part of this bundle")
    (copy / "more").unlink()
    shutil.move(copy / "bundle.json", tmp_path / "bundle.json")
    (copy / "bundle.json").symlink_to(tmp_path / "bundle.json")
    refused(copy, "bundle.json is a symbolic link")


def test_a_link_to_a_whole_bundle_is_fine(toy_bundle: Path, tmp_path: Path):
    (tmp_path / "current").symlink_to(toy_bundle)
    assert len(Bundle.open(tmp_path / "current").items) == 30


def test_a_part_outside_of_the_folder_is_never_opened(copy: Path):
    outside = copy.parent / "outside.txt"
    outside.write_text("secret")
    for name in ("../outside.txt", "model/../../outside.txt", str(outside)):
        sign(copy, lambda m, name=name: m["files"].update({name: sha256_file(outside)}))
        refused(copy, "a file outside of it")
        sign(copy, lambda m, name=name: m["files"].pop(name))
    Bundle.open(copy)


@pytest.mark.parametrize("name", ["", ".", "\0", "x" * 5000, "nul\nline", "\ud800"])
def test_a_name_that_no_file_has_is_one_line(copy: Path, name: str):
    sign(copy, lambda m: m["files"].update({name: "0" * 64}))
    refused(copy, "outside of it|is missing|is not valid JSON")


def test_pipes_and_devices_are_refused_without_opening_them(copy: Path):
    (copy / "vectors.safetensors").unlink()
    os.mkfifo(copy / "vectors.safetensors")  # to open it would wait for ever
    refused(copy, "vectors.safetensors is no plain file")
    (copy / "vectors.safetensors").unlink()
    (copy / "vectors.safetensors").symlink_to("/dev/zero")
    refused(copy, "vectors.safetensors is a symbolic link")


def test_a_model_larger_than_its_file_is_never_allocated(copy: Path):
    path = copy / "model" / "model.json"
    config = json.loads(path.read_text())
    for name, value, match in (
        ("num_items", 2_000_000_000, "items.ids.weight is"),
        ("dim", 65_536, "start_D is"),
        ("num_blocks", 250, "encoder.blocks"),
        ("window", 2**20, "tokens.position.weight"),
        ("max_shown_rank", 2**20, "rank_bias"),
        ("num_blocks", 10**9, "at most 256"),
        ("num_items", 10**12, "at most 2147483647"),
        ("dim", 16.0, "must be an integer|must be int"),
        ("use_time", "yes", "must be bool"),
    ):
        path.write_text(json.dumps({**config, name: value}))
        sign(copy)
        refused(copy, match)


def test_declared_shapes_beyond_the_file_are_refused(copy: Path):
    header = {"vectors": {"dtype": "F32", "shape": [2**40, 16], "data_offsets": [0, 2**46]}}
    text = json.dumps(header).encode()
    (copy / "vectors.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    sign(copy)
    refused(copy, "its parts do not fit together")
    (copy / "vectors.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    sign(copy)
    refused(copy, "its parts do not fit together")


def test_more_rows_than_said_are_not_read(copy: Path):
    frame = pl.DataFrame({"item_id": pl.repeat("i1", 3_000_000, eager=True)})
    frame.write_parquet(copy / "items.parquet")
    sign(copy)
    refused(copy, "items.parquet holds 3000000 rows and should hold 30")


def test_two_items_of_one_id_are_refused(copy: Path):
    frame = pl.read_parquet(copy / "items.parquet")
    frame.with_columns(item_id=pl.lit("i1")).write_parquet(copy / "items.parquet")
    sign(copy)
    refused(copy, "ids must be there and differ")


def test_events_of_items_that_are_not_there_are_refused(copy: Path):
    frame = pl.read_parquet(copy / "histories.parquet")
    for name, value in (("item", 30), ("item", -2), ("surface", 9), ("yes", 2**20)):
        kind = frame[name].dtype
        frame.with_columns(pl.col(name).list.eval(pl.lit(value)).cast(kind)).write_parquet(copy / "histories.parquet")
        sign(copy)
        refused(copy, f"{name} must be from|its parts do not fit")
    frame.with_columns(pl.col("timestamp").list.reverse()).write_parquet(copy / "histories.parquet")
    sign(copy)
    refused(copy, "in order of time")


def test_numbers_that_are_none_are_refused(copy: Path):
    vectors = load_file(copy / "vectors.safetensors")["vectors"]
    for odd in (np.nan, np.inf):
        vectors[3, 3] = odd
        save_file({"vectors": vectors}, copy / "vectors.safetensors")
        sign(copy)
        refused(copy, "numbers that are not finite")


def test_edges_that_lead_outside_the_catalogue_are_refused(copy: Path):
    folder = copy / "graph_now"
    header = json.loads((folder / "graph.json").read_text())
    arrays = load_file(folder / "edges.safetensors")
    for name, place, value in (("neighbours", 0, 30), ("neighbours", 0, -1), ("indptr", 1, 10**9), ("values", 0, -1.0)):
        odd = arrays[name].copy()
        odd[place] = value
        rest = {key: header[key] for key in header if key not in ("parts", "checksum")}
        write_parts(
            folder,
            "graph.json",
            rest,
            {"edges.safetensors": lambda path, a=odd, n=name: save_file({**arrays, n: a}, path)},
        )
        sign(copy)
        refused(copy, "edges.safetensors")


def test_json_without_end_or_measure_is_refused(tmp_path: Path):
    path = tmp_path / "x.json"
    for text, match in (
        ("[" * 200_000, "nested too deeply|not valid JSON"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('"\\ud800"', "not valid JSON"),
        ("\x80", "not valid JSON"),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=match):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(65 * 2**20)  # sparse
    with pytest.raises(InputError, match="more than the 67108864 that are read"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no file"):
        read_json(tmp_path / "pipe")


def test_a_pickle_is_never_loaded(copy: Path, tmp_path: Path):
    done = tmp_path / "done"
    pickle = b"cos\nsystem\n(S'touch " + str(done).encode() + b"'\ntR."
    for file in sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "bundle.json"):
        good = file.read_bytes()
        file.write_bytes(pickle)
        sign(copy)
        with contextlib.suppress(InputError):  # what the text transform is made of is only read when it is wanted
            Bundle.open(copy)
        file.write_bytes(good)
    assert not done.exists()


@pytest.mark.parametrize("name", ["memory_weights", "hybrid_weights", "hybrid_head"])
@pytest.mark.parametrize("value", [0, [], "", False])
def test_weights_that_are_no_object_are_refused(copy: Path, name: str, value: Any):
    """Also those that count as nothing."""
    sign(copy, lambda manifest: manifest.update({name: value}))
    refused(copy, f"{name} must be an object")


def test_hybrid_weights_without_their_parts_are_one_line(copy: Path):
    sign(copy, lambda manifest: manifest.update({"hybrid_weights": {"codes": 3}}))
    with pytest.raises(InputError, match="hybrid_weights cannot be read") as error:
        bundle_retrievers(Bundle.open(copy), ["dense"])
    assert "\n" not in str(error.value)
