"""Every example runs on small data and does what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load(path: Path) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test(root: Path) -> None:
    assert {path.stem for path in (root / "examples").glob("*.py")} == {
        "ask", "quickstart", "rerank", "serve_threads"
    }  # fmt: skip


def test_quickstart_recommends_to_two_users_and_a_stranger(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = load(root / "examples" / "quickstart.py").main(["--users", "60", "--epochs", "1"])
    assert len(table) == 10 and table["user_id"].n_unique() == 2
    assert "after a click on" in capsys.readouterr().out


def test_rerankers_change_pages(
    root: Path, toy_bundle: Path, small_lm_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load(root / "examples" / "rerank.py")
    assert example.main([str(toy_bundle), "--users", "4"]) >= 1
    assert " 0 tokens" in capsys.readouterr().out
    assert example.main([str(toy_bundle), "--method", "first", "--lm", str(small_lm_folder)]) >= 1
    said = capsys.readouterr().out
    assert said.count("->") == 3 and " 0 tokens" not in said and "note:" not in said


def test_threads_answer_every_user(root: Path, toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(root / "examples" / "serve_threads.py").main([str(toy_bundle), "--threads", "2"]) == 40
    assert "40 of 40 users" in capsys.readouterr().out
