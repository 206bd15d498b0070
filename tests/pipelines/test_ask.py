"""``recsys ask``: what is printed and written, exit codes, the dry view."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recsys.pipelines.ask import INCOMPLETE
from recsys.pipelines.cli import main


def test_a_question_is_answered_and_written(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.json"
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "something nice", "--k", "3", "--json", str(file)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    written = json.loads(file.read_text(encoding="utf-8"))
    assert len(written["items"]) == 3 and written["kind"] == "items" and written["user_id"] == "u0"
    for item in written["items"]:
        assert f"[{item['number']}] {item['title']}" in printed
    assert written["usage"]["calls"] == 0 and written["complete"] is True and "prompts" not in written


def test_facts_come_from_the_user_s_events(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb", reason="needs the extra rag")
    from recsys.retrieval.recommender import Recommender

    assert main(["ask", "--bundle", str(toy_bundle), "--user", "u3", "how many things did I have?"]) == 0
    events = Recommender.load(toy_bundle).events_of("u3") or []
    count, items = len(events), len({event.item_id for event in events})
    assert f"events | items\n{count} | {items}" in capsys.readouterr().out


def test_the_dry_view_shows_prompts_and_asks_nobody(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dry.json"
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "something [nice]", "--dry", "--json", str(file)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "--- prompt 1, at most about" in printed and "something (nice)" in printed
    prompts = json.loads(file.read_text(encoding="utf-8"))["prompts"]
    assert [len(chat) for chat in prompts] == [2, 2] and prompts[0][0]["role"] == "system"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "hello"], "--bundle must be given"),
        (["ask", "--bundle", "nowhere", "hello"], "nowhere"),
        (["ask", "--bundle", "BUNDLE"], "question must be given"),
        (["ask", "--bundle", "BUNDLE", "  "], "the question must be a text"),
        (["ask", "--bundle", "BUNDLE", "hello", "--facts", "maybe"], "--facts"),
        (["ask", "--bundle", "BUNDLE", "hello", "--lm", "no_such_folder"], "no_such_folder"),
    ],
)
def test_a_fault_of_the_user_is_one_line(
    toy_bundle: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([str(toy_bundle) if word == "BUNDLE" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("recsys ask: ")


def test_a_server_that_is_not_there_ends_in_its_own_code(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai", reason="needs the extra llm")
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "hello", "--lm", "http://127.0.0.1:9/v1#m"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--deadline-ms", "500"])
    assert stop.value.code == INCOMPLETE
    assert "[1] " in capsys.readouterr().out
