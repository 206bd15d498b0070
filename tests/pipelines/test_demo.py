"""The demo's own parts; the slow test runs all of it."""

from __future__ import annotations

import io
import time
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from recsys.pipelines import cli, demo
from recsys.retrieval.recommender import Recommender

EVALUATION = {
    "retrieval": {
        "dense": {"ndcg@10": 0.11, "recall@10": 0.21},
        "dense_learned": {"ndcg@10": 0.12, "recall@10": 0.22},
        "memory": {"ndcg@10": 0.08, "recall@10": 0.18},
    },
    "ranking": {"click": {"auc": 0.71}},
    "baselines": {
        "memory": {"ndcg@10": 0.08, "recall@10": 0.18},
        "popularity": {"ndcg@10": 0.07, "recall@10": 0.17},
        "past_rates": {"click": {"auc": 0.61}},
    },
}
CEILINGS = {
    "posterior": {"retrieval": {"ndcg@10": 0.22, "recall@10": 0.42}, "ranking": {"click": {"auc": 0.78}}},
    "true": {"retrieval": {"ndcg@10": 0.23, "recall@10": 0.43}, "ranking": {"click": {"auc": 0.79}}},
}


def shown(*things: object) -> str:
    stream = io.StringIO()
    Console(width=200, file=stream).print(*things)
    return stream.getvalue()


def test_the_table_holds_model_baselines_and_ceilings_once() -> None:
    text = shown(demo.figures_table(EVALUATION, CEILINGS))
    lines = [[word for word in line.split("│") if word] for line in text.splitlines() if line.startswith("│")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert rows == {
        "this model": ["0.1100", "0.2100", "0.7100"],
        "this model, dense_learned": ["0.1200", "0.2200", "–"],
        "memory": ["0.0800", "0.1800", "–"],
        "popularity": ["0.0700", "0.1700", "–"],
        "past_rates": ["–", "–", "0.6100"],
        "ceiling: posterior": ["0.2200", "0.4200", "0.7800"],
        "ceiling: true": ["0.2300", "0.4300", "0.7900"],
    }
    assert text.count("memory") == 1


def test_example_users_are_shown_with_titles_and_probabilities(toy_bundle: Path) -> None:
    stream = io.StringIO()
    demo._show_users(Console(width=200, file=stream), Recommender.load(toy_bundle))
    text = stream.getvalue()
    assert text.count("recommended") == 3
    assert text.count("title ") >= 3 * 4 and "like" in text


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert cli.main(["demo", "--output", str(tmp_path)]) == 2
    assert "holds something other than a demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_every_command_of_the_demo_is_one_of_the_command_line(tmp_path: Path) -> None:
    names = [words[0] for words in demo._commands(tmp_path, 10, 10, 0)]
    assert names == ["simulate", "prepare", "fit", "export", "candidates", "evaluate", "report"]


@pytest.mark.slow
def test_the_whole_demo_runs_and_leaves_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.perf_counter()
    assert cli.main(["demo", "--output", str(tmp_path / "demo")]) == 0
    assert time.perf_counter() - began < 300  # 180 on a machine with two idle cores; this one shares them
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    candidates = pl.read_parquet(tmp_path / "demo" / "candidates" / "*.parquet")
    assert len(candidates) == 1000
    assert "ceiling: posterior" in capsys.readouterr().out
