"""Passages, questions, models and servers that mean harm: always an answer, never a citation that holds by mistake."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.retrieval.rag.answer import Answerer
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.rounds import RoundAnswerer

pytest.importorskip("bm25s", reason="needs the extra rag")

CASES = yaml.safe_load((Path(__file__).parent / "hostile_answers.yaml").read_text(encoding="utf-8"))
HARMLESS = [
    "The red train costs 25 dollars and is made of wood.",
    "The blue ship floats in the bath.",
    "A puzzle of 100 pieces with a train.",
]
HUGE = "word train 7 " * 20_000
REPEAT = "The red train costs 25 dollars [1]. " * 300


def filled(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("{huge}", HUGE).replace("{repeat}", REPEAT)
    if isinstance(value, dict):
        return {key: filled(one) for key, one in value.items()}
    return [filled(one) for one in value] if isinstance(value, list) else value


def test_there_are_enough_cases_and_none_twice() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_hostile_case(case: dict[str, Any], saying_server: Any, saying_lm: Any) -> None:
    case = filled(case)
    texts = case.get("passages", HARMLESS)
    if "passages_count" in case:
        texts = [f"The red train number {number} costs 25 dollars." for number in range(case["passages_count"])]
    store = PassageStore.build([Passage.of(text, f"document {number}") for number, text in enumerate(texts)])
    question = case.get("question", "How much does the red train cost?")
    saying_server.say(case["says"])
    deadline = time.monotonic() + case["deadline_s"] if "deadline_s" in case else None
    answerer = Answerer(saying_lm, store, selection="tree", budget_tokens=500)
    start = time.monotonic()
    answer = answerer.answer(question, deadline=deadline)
    assert time.monotonic() - start < 20
    if "deadline_s" in case:
        assert time.monotonic() - start < 6
    check(case, answer, store, saying_server)
    assert answer.status == case.get("status", "answered")
    # The same case in rounds: whatever happens, an answer that stands on passages of the store.
    saying_server.say(case["says"])
    deadline = time.monotonic() + case["deadline_s"] if "deadline_s" in case else None
    whole = RoundAnswerer(answerer, budget_tokens=9000).answer(question, deadline=deadline)
    assert len(whole.rounds) <= 5
    check({key: value for key, value in case.items() if key in ("prompt_lacks", "text_lacks")}, whole.answer, store,
          saying_server)  # fmt: skip


def check(case: dict[str, Any], answer: Any, store: PassageStore, server: Any) -> None:
    """What must hold of any answer, and what the case says."""
    assert answer.text and all(sign.isprintable() or sign == "\n" for sign in answer.text)
    known = {passage.id for passage in store.passages}
    assert {passage.id for passage in answer.passages} <= known
    checked = answer.citations
    assert set(checked.cited) <= set(range(1, len(answer.passages) + 1))
    assert (answer.status == "nothing found") <= (not answer.passages and not server.asked)
    if answer.status in ("failed", "cut"):
        assert any("answer" in note for note in answer.notes)
    for prompt in server.asked:
        assert len(re.findall(r"^\[\d+\]", prompt, re.MULTILINE)) <= len(known)
        assert len(prompt) < 6000
    if "unknown" in case:
        assert list(checked.unknown_citations) == case["unknown"]
    if "unsupported" in case:
        assert len(checked.unsupported) == case["unsupported"], [one.text for one in checked.sentences]
    if "passes" in case:
        assert checked.passed is case["passes"], answer
    for piece in case.get("prompt_lacks", ()):
        assert server.asked and not any(piece in prompt for prompt in server.asked)
    for piece in case.get("prompt_has", ()):
        assert all(piece in prompt for prompt in server.asked)
    for piece in case.get("text_lacks", ()):
        assert piece not in answer.text
