"""The example of questions in words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def test_questions_are_answered_in_a_conversation(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb", reason="needs the extra rag")
    spec = importlib.util.spec_from_file_location("example_ask", root / "examples" / "ask.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    texts = example.main(["--users", "60", "--epochs", "1"])
    assert "colour is red; price at most 20" in texts[0] and "price at most 20; colour is blue" in texts[1]
    assert not set(texts[1].split("\n")[1:]) & set(texts[2].split("\n")[1:])
    assert texts[3].startswith("events | items")
    assert "> rather a blue one" in capsys.readouterr().out
