"""The full list in one question."""

from __future__ import annotations

import time
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.retrieval.rerank import RerankItem, RerankRequest
from recsys.retrieval.rerank.full_list import FullListReranker


def test_one_question_a_list(small_lm: Any, requests_of_many_lengths: list[RerankRequest]) -> None:
    results = FullListReranker(small_lm, top=3).rerank(requests_of_many_lengths)
    assert [result.usage.calls for result in results] == [0, 0, 1, 1, 1, 1, 1]
    assert all(sorted(result.ids) == sorted(result.candidates) and result.complete for result in results)
    assert all(result.faults.missing <= 3 for result in results)


def test_top_asks_for_a_shorter_answer(small_lm: Any, requests_of_many_lengths: list[RerankRequest]) -> None:
    request = requests_of_many_lengths[4]
    whole, top = (FullListReranker(small_lm, top=top).rerank([request])[0].usage for top in (None, 5))
    assert top.generated_tokens < whole.generated_tokens / 2
    text = FullListReranker(small_lm, top=5).question(request)[-1].text
    assert "the 5 candidates" in text and "These are 20 candidates" in text


def test_labels(small_lm: Any, requests_of_many_lengths: list[RerankRequest]) -> None:
    reranker = FullListReranker(small_lm, letters=True)
    assert "[G] " in reranker.questions(requests_of_many_lengths[3])[0][-1].text
    assert "[45] " in reranker.questions(requests_of_many_lengths[6])[0][-1].text, "more candidates than letters"
    assert reranker.questions(requests_of_many_lengths[1]) == []


def test_what_does_not_fit_keeps_its_place_at_the_end(small_lm: Any) -> None:
    """The small model reads 4096 tokens; letters are tokens."""
    candidates = [RerankItem(item_id=at, text="abcdefghi " * 8) for at in range(100)]
    request = RerankRequest(candidates=candidates)
    reranker = FullListReranker(small_lm, top=5)
    (chat,) = reranker.questions(request)
    shown = sum(line.startswith("[") for line in chat[-1].text.split("\n"))
    assert 20 < shown < 100
    assert len(small_lm.encode_chat(chat, "[")) < small_lm.context_tokens
    (result,) = reranker.rerank([request])
    assert result.ids[shown:] == tuple(range(shown, 100)) and sorted(result.ids) == list(range(100))
    assert result.complete and result.notes == (f"{shown} of 100 candidates fit into the model's context",)
    long = FullListReranker(small_lm, item_chars=4000)
    (result,) = long.rerank([RerankRequest(candidates=[RerankItem(item_id=at, text="x" * 4000) for at in (1, 2)])])
    assert result.ids == (1, 2) and not result.complete and result.faults.failed == 1


def test_a_passed_deadline_keeps_the_order(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    results = FullListReranker(small_lm).rerank(few_requests, deadline=time.monotonic() - 1)
    assert all(result.ids == result.candidates for result in results)
    assert [result.complete for result in results] == [False, True, True, False]


def test_settings_are_checked(small_lm: Any) -> None:
    with pytest.raises(InputError, match="top must be a whole number from 1 on, got 0"):
        FullListReranker(small_lm, top=0)
