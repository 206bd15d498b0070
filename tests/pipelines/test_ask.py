"""``recsys ask``: what is printed and written, exit codes, costs, saved passages, rounds, rerankers, the dry view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.pipelines.ask import INCOMPLETE
from recsys.pipelines.cli import main

CARE = "Wipe the red train with a damp cloth made in Oslo."


@pytest.fixture(scope="module")
def store(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of the bundle's items and of two documents, saved by the command."""
    pytest.importorskip("bm25s", reason="needs the extra rag")
    folder = tmp_path_factory.mktemp("passages")
    texts = [CARE, "Oslo is cold in winter."]
    pl.DataFrame({"id": ["care", "towns"], "text": texts, "item_id": ["i21", None]}).write_parquet(folder / "d.parquet")
    words = ["passages", "--bundle", str(toy_bundle), "--documents", str(folder / "d.parquet")]
    assert main([*words, "--output", str(folder / "store")]) == 0
    return folder / "store"


def lm_of(server: Any) -> list[str]:
    pytest.importorskip("openai", reason="needs the extra llm")
    return ["--lm", f"{server.url}#m", "--lm-retries", "0"]


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
        (["ask", "--bundle", "BUNDLE", "hello", "--lm-prices", "1,2,3"], "--lm-prices is of a language model"),
        (["ask", "--bundle", "BUNDLE", "hello", "--lm", "x", "--lm-prices", "1,2"], "give three numbers from 0"),
        (["ask", "--bundle", "BUNDLE", "hello", "--lm", "x", "--lm-prices", "1,2,-3"], "give three numbers from 0"),
        (["ask", "--bundle", "BUNDLE", "hello", "--lm", "x", "--lm-prices", "1,nan,3"], "give three numbers from 0"),
        (["ask", "--bundle", "BUNDLE", "hello", "--lm", "x", "--lm-retries", "1"], "--lm names a folder"),
        (["ask", "--bundle", "BUNDLE", "hello", "--lm", "x", "--no-lm-prefill"], "--no-lm-prefill is of a server"),
        (
            ["ask", "--bundle", "BUNDLE", "hello", "--lm", "http://h#m", "--lm-timeout-s", "0"],
            "must be a number above 0",
        ),
        (["ask", "--bundle", "BUNDLE", "hello", "--lm", "http://h#m", "--lm-retries", "-1"], "must be at least 0"),
        (["ask", "--bundle", "BUNDLE", "hello", "--store", "nowhere"], "nowhere/store.json is missing"),
        (["ask", "--bundle", "BUNDLE", "hello", "--store", "x", "--passages"], "give one of the two"),
        (["ask", "--bundle", "BUNDLE", "hello", "--encoder", "x"], "--encoder belongs to --store or --passages"),
        (["ask", "--bundle", "BUNDLE", "hello", "--candidates", "9"], "--candidates belongs to --passages, --store"),
        (["ask", "--bundle", "BUNDLE", "hello", "--candidates", "4", "--passages"], "at least the 5 items of --k"),
        (["ask", "--bundle", "BUNDLE", "hello", "--prompt", "first"], "--prompt belongs to --rerank METHOD"),
        (["ask", "--bundle", "BUNDLE", "hello", "--rerank", "first"], "--lm must be given for the method first"),
        (["ask", "--bundle", "BUNDLE", "hello", "--facts", "yes", "--passages"], "--facts yes asks tables"),
        (["ask", "--bundle", "BUNDLE", "hello", "--k", "0"], "--k must be above 0"),
        (["ask", "--bundle", "BUNDLE", "hello", "--budget-tokens", "9"], "--budget-tokens belongs to --rounds"),
        (["ask", "--bundle", "BUNDLE", "hello", "--rounds", "2", "--lm", "x"], "give --store, or --passages"),
        (["ask", "hello", "--rounds", "2", "--store", "x"], "--rounds needs a language model"),
        (["ask", "hello", "--rounds", "2", "--passages", "--lm", "x"], "--bundle must be given"),
        (["ask", "hello", "--rounds", "6", "--store", "x", "--lm", "x"], "--rounds must be from 1 to 5, got 6"),
        (["ask", "hello", "--rounds", "2", "--store", "x", "--budget-tokens", "0"], "--budget-tokens must be at least"),
        (["ask", "hello", "--rounds", "2", "--store", "x", "--lm", "x", "--user", "u0"], "--user: --rounds answers"),
        (["ask", "hello", "--rounds", "2", "--store", "x", "--lm", "x", "--k", "3"], "--k: --rounds answers from"),
        (["ask", "hello", "--rounds", "2", "--store", "x", "--lm", "x", "--bundle", "BUNDLE"], "leave it out"),
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


def test_costs_follow_the_prices(
    toy_bundle: Path, tmp_path: Path, saying_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.json"
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "a thing", *lm_of(saying_server), "--json", str(file)]
    saying_server.say({"text": "[]", "cached": 2}, "[1] is a thing.")
    assert main([*words, "--lm-prices", "2, 0.5, 10"]) == 0
    cost = ((5 * 2 + 2 * 0.5 + 3 * 10) + (7 * 2 + 3 * 10)) / 1e6
    assert "2 calls, 14 tokens read (2 of them kept), 6 written" in (told := capsys.readouterr().err)
    assert f"cost {cost:.6f}; faults:" in told
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["usage"]["cost"] == pytest.approx(cost) and written["usage"]["seconds"] > 0
    assert written["prices_per_million_tokens"] == {"prompt": 2.0, "reused": 0.5, "generated": 10.0}
    saying_server.say("[]", "[1] is a thing.")
    assert main(words) == 0
    assert "2 calls" in (told := capsys.readouterr().err) and "cost" not in told
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["usage"]["cost"] == 0.0 and "prices_per_million_tokens" not in written


def test_how_long_and_how_often_a_server_is_asked(
    toy_bundle: Path, saying_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "a thing", *lm_of(saying_server)]
    for answer, flags, message in (
        ({"status": 500, "raw": ""}, [], "answered 500"),
        ({"text": "[]", "wait": 0.5}, ["--lm-timeout-s", "0.1"], "gave no answer within 0.1 s"),
    ):
        saying_server.say(answer)
        with pytest.raises(SystemExit) as stop:
            main([*words, *flags])
        assert stop.value.code == INCOMPLETE and len(saying_server.asked) == 2, "a prompt of filters, one of the reply"
        captured = capsys.readouterr()
        assert message in captured.out and "2 failed" in captured.err
    saying_server.say("[]", "[1] is a thing.")
    main(words)
    assert [told.splitlines()[-1] for told in saying_server.asked] == ["[", "[1]"]
    saying_server.say("[]", "[1] is a thing.")
    main([*words, "--no-lm-prefill"])
    assert not any(told.splitlines()[-1] in ("[", "[1]") for told in saying_server.asked)


def test_saved_passages_are_found_as_those_made_on_the_spot(toy_bundle: Path, tmp_path: Path, store: Path) -> None:
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "--k", "4"]
    saved = tmp_path / "saved"
    assert main(["passages", "--bundle", str(toy_bundle), "--output", str(saved)]) == 0
    answers = []
    for question, flags in (
        ("steel", ["--passages"]),
        ("steel", ["--store", str(saved)]),
        ("steel", []),
        ("a damp cloth", ["--store", str(saved)]),
        ("a damp cloth", ["--store", str(store)]),
    ):
        file = tmp_path / "answer.json"
        assert main([*words, question, *flags, "--json", str(file)]) == 0
        answers.append([item["item_id"] for item in json.loads(file.read_text(encoding="utf-8"))["items"]])
    assert answers[0] == answers[1] != answers[2]
    assert answers[4][0] == "i21" != answers[3][0], "a document speaks of it"


def test_a_store_of_other_items_is_refused(
    toy_bundle: Path, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = tmp_path / "d.jsonl"
    documents.write_text('{"id": "a", "text": "about nothing"}\n{"id": "b", "text": "about x", "item_id": "x"}\n')
    assert main(["passages", "--documents", str(documents), "--output", str(tmp_path / "other")]) == 0
    assert main(["ask", "--bundle", str(toy_bundle), "about x", "--store", str(tmp_path / "other")]) == 2
    assert "none of its 2 passages is about an item of the bundle" in capsys.readouterr().err


def test_a_reranker_s_faults_reach_the_answer(
    toy_bundle: Path, tmp_path: Path, saying_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.json"
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "a thing", *lm_of(saying_server), "--json", str(file)]
    saying_server.say("[]", "2] > [9] > [2]", "[1] is a thing.")
    assert main([*words, "--k", "2"]) == 0
    before = json.loads(file.read_text(encoding="utf-8"))
    saying_server.say("[]", "2] > [9] > [2]", "[1] is a thing.")
    assert main([*words, "--k", "2", "--rerank", "listwise", "--candidates", "4"]) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    ids = [[item["item_id"] for item in answer["items"]] for answer in (before, written)]
    assert ids[1] == ids[0][::-1] and written["usage"]["calls"] == 3
    faults = {name: count for name, count in written["faults"].items() if name.startswith("rerank")}
    assert faults == {"rerank_missing": 3, "rerank_repeated": 1, "rerank_foreign": 1, "rerank_malformed": 0}
    assert "3 rerank missing, 1 rerank repeated, 1 rerank foreign" in capsys.readouterr().err
    assert "a thing" in saying_server.asked[1] and "These are 4 candidates" in saying_server.asked[1]


def test_an_answer_in_rounds(
    store: Path, tmp_path: Path, saying_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.json"
    words = ["ask", "how do I clean the red train?", "--rounds", "3", "--store", str(store), *lm_of(saying_server)]
    words += ["--lm-prices", "1,1,1", "--json", str(file)]
    saying_server.say("Follow up: winter in Oslo?", f"Answer: {CARE[:-1]} [1].")
    assert main(words) == 0
    captured = capsys.readouterr()
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (
        captured.out.startswith(f"{CARE[:-1]} [1].\n[1] ") and "looked up in round 2: winter in Oslo?" in captured.out
    )
    assert "2 calls, 14 tokens read" in captured.err and "cost 0.000020" in captured.err
    assert (written["kind"], written["status"], written["ended"]) == ("passages", "answered", "answered")
    assert [one["question"] for one in written["rounds"]] == [words[1], "winter in Oslo?"]
    assert written["usage"]["cost"] == pytest.approx(20 / 1e6) and written["complete"] is True
    assert written["passages"][0].keys() == {"number", "id", "source", "item_id", "text"}
    assert {one["source"] for one in written["passages"]} >= {"care", "towns"}
    saying_server.say("Follow up:", "It is red [9]. Kites fly.")
    assert main(words) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["ended"] == "unreadable" and written["faults"] == {
        "malformed": 1, "unknown_citations": 1, "unsupported_sentences": 2, "failed": 0,
    }  # fmt: skip
    saying_server.say("Answer: x")
    for flags, ended in ((["--budget-tokens", "20"], "budget"), (["--deadline-ms", "0.001"], "deadline")):
        with pytest.raises(SystemExit) as stop:
            main([*words, *flags])
        assert stop.value.code == INCOMPLETE and saying_server.asked == []
        written = json.loads(file.read_text(encoding="utf-8"))
        assert (written["ended"], written["status"], written["complete"]) == (ended, "failed", False)
    assert main(["ask", "zebra?", *words[2:]]) == 0 and saying_server.asked == []
    assert json.loads(file.read_text(encoding="utf-8"))["ended"] == "nothing found"


def test_the_dry_view_of_rounds_and_of_a_reranker(
    toy_bundle: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dry.json"
    dry = ["--dry", "--json", str(file), "--lm", "nowhere", "--lm-prices", "1,1,1"]
    assert main(["ask", "how do I clean the red train?", "--rounds", "3", "--store", str(store), *dry]) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    (prompt,) = written["prompts"]
    assert CARE in prompt[-1]["text"] and "Follow up" in prompt[-1]["text"] and written["usage"]["calls"] == 0
    tokens = sum(-(-len(message["text"].encode()) // 3) for message in prompt)
    assert f"at most about {tokens} tokens, cost {tokens / 1e6:.6f} to read" in capsys.readouterr().out
    assert main(["ask", "zebra?", "--rounds", "1", "--store", str(store), *dry]) == 0
    assert "--- no prompt:" in capsys.readouterr().out
    words = ["ask", "--bundle", str(toy_bundle), "--user", "u0", "a thing", "--k", "2", "--candidates", "3"]
    assert main([*words, "--rerank", "pointwise", *dry]) == 0
    prompts = json.loads(file.read_text(encoding="utf-8"))["prompts"]
    assert ["Would the user choose" in chat[-1]["text"] for chat in prompts] == [False, True, True, True, False]
