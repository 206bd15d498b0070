"""The command tokenize: the folder it writes, what it prints, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.pipelines.cli import main
from recsys.pipelines.item_codes import read_codes
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.tokenize import parse_blocks


@pytest.fixture(scope="module")
def sids(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenize") / "sids"
    assert main(["tokenize", "--data", str(toy_dataset.path), "--output", str(folder)]) == 0
    return folder


def test_the_folder_and_the_table(toy_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenize", "--data", str(toy_dataset.path), "--output", str(tmp_path / "sids")]
    assert main([*words, "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr()
    for label in ("items that share theirs", "unused codes per level", "entropy per level", "neighbours kept"):
        assert label in printed.out
    assert "semantic IDs of 30 items" in printed.out and "--data.sids" in printed.out
    assert "semantic IDs" in printed.err  # the progress
    frame = pl.read_parquet(tmp_path / "sids" / "codes.parquet")
    assert frame.columns == ["item_id", "codes", "parallel_codes", "set_codes"]
    assert frame["item_id"].to_list() == toy_dataset.item_ids.to_list()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["data_hash"] == toy_dataset.manifest.data_hash and figures["num_items"] == 30
    for kind in frame.columns[1:]:
        health = figures["kinds"][kind]["health"]
        assert frame[kind].n_unique() == health["num_leaves"]
        assert len(health["entropy_bits"]) == len(figures["kinds"][kind]["sizes"]) == len(frame[kind][0])


def test_flags_reach_the_codes(toy_dataset: Dataset, tmp_path: Path) -> None:
    words = ["tokenize", "--data", str(toy_dataset.path), "--output", str(tmp_path / "sids"), "--levels", "2"]
    words += ["--codebook-size", "5", "--balance", "capacity", "--blocks", "transition:2,text", "--seed", "3"]
    assert main(words) == 0
    about = json.loads((tmp_path / "sids" / "sids.json").read_text())
    codes = about["kinds"]["codes"]
    assert codes["sizes"] == [5, 5] and codes["settings"]["balance"] == "capacity" and about["seed"] == 3
    assert codes["blocks"] == ["transition", "text"]
    first = np.bincount(np.stack(pl.read_parquet(tmp_path / "sids" / "codes.parquet")["codes"].to_list())[:, 0])
    assert first.tolist() == [6] * 5


def test_what_training_reads(sids: Path, toy_dataset: Dataset) -> None:
    codes = read_codes(sids, toy_dataset)
    stated = json.loads((sids / "sids.json").read_text())["kinds"]
    assert {kind: list(sizes) for kind, sizes in codes.sizes.items()} == {
        kind: said["sizes"] for kind, said in stated.items()
    }


@pytest.mark.parametrize("flag", ["--append-to", "--align-to"])
def test_a_grown_catalogue(flag: str, sids: Path, toy_frames: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    more = pl.DataFrame({"item_id": ["n0", "n1"], "title": ["new one", "new two"], "text": ["red ship", "blue car"]})
    items = pl.concat([toy_frames["items"], more])
    grown = prepare_frames(toy_frames["interactions"], items, output=tmp_path / "data")
    words = ["tokenize", "--data", str(grown.path), "--output", str(tmp_path / "sids"), flag, str(sids)]
    assert main(words) == 0
    old, new = (pl.read_parquet(folder / "codes.parquet") for folder in (sids, tmp_path / "sids"))
    assert new.height == old.height + 2
    both = old.join(new, on="item_id", suffix="_new", maintain_order="left")
    for kind in ("codes", "parallel_codes", "set_codes"):
        before, after = (np.stack(both[name].to_list()) for name in (kind, f"{kind}_new"))
        assert before.shape == after.shape
        if flag == "--append-to":
            assert np.array_equal(before, after)


def test_block_weights_are_parsed() -> None:
    assert parse_blocks("content, transition:1.5") == {"content": None, "transition": 1.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "kmeans"], "--method kmeans: choose one of rq-kmeans, rq-vae, fsq, opq"),
        (["--blocks", "content:much"], "--blocks content:much: 'much' is no number"),
        (["--blocks", "content,content"], "content stands twice"),
        (["--blocks", "colour"], "has no block 'colour'; choose some of content, transition, text"),
        (["--blocks", ","], "--blocks names none"),
        (["--codebook-size", "64"], "30 distinct vectors for 64 codes"),
        (["--append-to", "nowhere"], "nowhere/sids.json is missing"),
        (["--append-to", "a", "--align-to", "b"], "give one of them"),
        (["--append-to", "a", "--levels", "4"], "--append-to takes the old codebooks as they are"),
        (["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--text-encoder", "nowhere"], "nowhere is no folder; give the folder of a sentence-transformers model"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, toy_dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sids"
    assert main(["tokenize", "--data", str(toy_dataset.path), "--output", str(output), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()  # and no bar of work that was not done
    assert message in line
    assert not output.exists() and list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_left_alone(toy_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "sids").mkdir()
    (tmp_path / "sids" / "notes.txt").write_text("mine")
    assert main(["tokenize", "--data", str(toy_dataset.path), "--output", str(tmp_path / "sids")]) == 2
    assert (tmp_path / "sids" / "notes.txt").read_text() == "mine"
