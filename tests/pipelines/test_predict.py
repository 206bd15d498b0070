"""``recsys predict`` writes what ``recsys candidates`` writes from the exported bundle."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.pipelines.candidates import candidates
from recsys.pipelines.predict import main


@pytest.fixture
def checkpoint(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path: Path) -> Path:
    meta = {"config": toy_model.config.to_dict(), "data_hash": toy_dataset.manifest.data_hash}
    state = {f"net.{name}": value for name, value in toy_model.state_dict().items()}
    torch.save({"recsys": meta, "state_dict": state}, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def test_predict_is_export_and_candidates(
    checkpoint: Path, toy_bundle: Path, toy_dataset: Dataset, tmp_path: Path
) -> None:
    where = ["--data.path", str(toy_dataset.path), "--ckpt_path", str(checkpoint), "--output", str(tmp_path / "ours")]
    main([*where, "--k", "6", "--rank", "3", "--split", "test", "--shard-users", "15"])
    candidates(toy_bundle, toy_dataset.path, tmp_path / "theirs", k=6, rank=3, split="test", shard_users=15)
    files = sorted(file.name for file in (tmp_path / "ours").glob("*.parquet"))
    assert len(files) == 3
    for name in files:
        ours, theirs = (pl.read_parquet(tmp_path / folder / name) for folder in ("ours", "theirs"))
        assert ours.equals(theirs)


def test_the_last_checkpoint_of_a_run_and_a_file_of_flags(
    checkpoint: Path, toy_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "1" / "checkpoints").mkdir(parents=True)
    checkpoint.rename(tmp_path / "runs" / "1" / "checkpoints" / "last.ckpt")
    (tmp_path / "flags.yaml").write_text(f"data: {{path: '{toy_dataset.path}'}}\nk: 3\noutput: lists\n")
    main(["--config", "flags.yaml", "--ckpt_path", "last", "--k", "4"])
    main(["--config", "flags.yaml", "--ckpt_path", "last", "--trainer.default_root_dir", "runs/1", "--output", "named"])
    lists = [pl.read_parquet(name + "/*.parquet")["item_ids"] for name in ("lists", "named")]
    assert [column.list.len().max() for column in lists] == [4, 3]
    assert lists[1].to_list() == lists[0].list.head(3).to_list()
    with pytest.raises(InputError, match="--ckpt_path last: nowhere does not exist"):
        main(["--config", "flags.yaml", "--ckpt_path", "last", "--trainer.default_root_dir", "nowhere"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt_path", "x.ckpt", "--output", "out"], "--data.path must be given"),
        (["--data.path", "d", "--ckpt_path", "x", "--output", "out", "--split-by", "now"], "unknown flag --split-by"),
        (["--data.path", "d", "--ckpt_path", "x", "--output", "out", "--k", "many"], "--k: expected int, got 'many'"),
    ],
)
def test_bad_flags_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)
