"""The cost of a fit is measured on a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.fit_cost import fit_cost, main


def test_a_fit_is_measured_whole(toy_dataset: Dataset, tmp_path: Path):
    row = fit_cost(toy_dataset.path, tmp_path / "run", threads=1, flags=("--trainer.max_epochs", "1"))
    assert row["items"] == toy_dataset.num_items
    assert row["training events"] == int(toy_dataset.train_end.sum())
    assert 0 < row["of them item ids"] < row["parameters"]
    assert 0 < row["CPU minutes"] and row["CPU minutes"] < 1.5 * row["minutes"] + 0.05  # one thread
    assert 0.1 < row["peak memory, GiB"] < 8
    assert row["validation"].startswith("NDCG@10")


def test_a_fit_that_fails_is_no_row(toy_dataset: Dataset, tmp_path: Path):
    with pytest.raises(InputError, match="ended with 2"):
        fit_cost(toy_dataset.path, tmp_path / "run", threads=1, flags=("--model.dim", "0"))


def test_a_set_without_a_name_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["--data", "somewhere"]) == 2
    assert "NAME=DATA" in capsys.readouterr().err
