"""Listwise: orders that a model writes down, window by window."""

from __future__ import annotations

import time
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.retrieval.rerank import Faults, RerankRequest
from recsys.retrieval.rerank.listwise import ListwiseReranker
from recsys.retrieval.rerank.lm import Generation
from recsys.retrieval.rerank.tally import Tally
from recsys.retrieval.rerank.written_order import answer_tokens, example_answer, written


def said(text: str, finish: Any = "stop", error: str | None = None) -> tuple[list[int], Faults]:
    tally = Tally()
    places = written(Generation(text=text, finish=finish, error=error), "[", "ABCDE", 5, tally)
    return list(places), tally.faults


def test_answers_go_on_after_the_prefill_or_begin_anew() -> None:
    expected = [2, 0, 1, 3, 4]
    for text in ("C] > [A]", "[C] > [A]", "C > A", "C, A", '{"order": ["C", "A"]}', "C]\n[A]"):
        assert said(text) == (expected, Faults(missing=3)), text
    assert said("no idea") == ([0, 1, 2, 3, 4], Faults(malformed=1))


def test_what_was_said_before_an_answer_broke_off_is_used() -> None:
    assert said("C] > [A", "error", "lost") == ([2, 0, 1, 3, 4], Faults(failed=1))
    assert said("C] >", "deadline") == ([2, 0, 1, 3, 4], Faults(failed=1))
    assert said("", "error", "lost") == ([0, 1, 2, 3, 4], Faults(failed=1))
    assert said("C] > [A", "length") == ([2, 0, 1, 3, 4], Faults(missing=4)), "half a label is none"


def test_the_small_model_is_asked_window_by_window(
    small_lm: Any, requests_of_many_lengths: list[RerankRequest]
) -> None:
    results = ListwiseReranker(small_lm).rerank(requests_of_many_lengths)
    assert [result.usage.calls for result in results] == [0, 0, 1, 1, 1, 2, 4]
    for result in results[2:]:
        assert sorted(result.ids) == sorted(result.candidates) and result.complete and result.scores is None
        assert result.faults and result.usage.generated_tokens > 0, "an untrained model says nothing of use"


def test_the_answer_may_be_as_long_as_an_order(small_lm: Any) -> None:
    names = [str(at + 1) for at in range(20)]
    order = " > ".join(f"[{name}]" for name in names)
    assert answer_tokens(small_lm, names) >= small_lm.count_tokens([order[1:]])[0]
    assert example_answer(names) == "[2] > [3] > [1]"


def test_the_question_holds_the_window_and_the_user(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    (chat,) = ListwiseReranker(small_lm).questions(few_requests[0])
    lines = chat[-1].text.split("\n")
    assert [line for line in lines if line.startswith("- ")] == [f"- {item.text}" for item in few_requests[0].history]
    texts = [f"[{at + 1}] {item.text}" for at, item in enumerate(few_requests[0].candidates)]
    assert [line for line in lines if line.startswith("[")] == texts
    assert [message.role for message in chat] == ["system", "user"]


def test_a_passed_deadline_keeps_the_order(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    results = ListwiseReranker(small_lm).rerank(few_requests, deadline=time.monotonic() - 1)
    assert all(result.ids == result.candidates for result in results)
    assert [result.complete for result in results] == [False, True, True, False]
    assert results[0].notes == ("the deadline passed",)


def test_settings_are_checked(small_lm: Any) -> None:
    with pytest.raises(InputError, match="step 21 leaves out candidates"):
        ListwiseReranker(small_lm, step=21)
    with pytest.raises(InputError, match="no prompt 'list'"):
        ListwiseReranker(small_lm, prompt="list")
