"""Pointwise: the scores are the model's own likelihoods."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from recsys.errors import InputError
from recsys.retrieval.rerank import RerankRequest
from recsys.retrieval.rerank.pointwise import PointwiseReranker
from recsys.retrieval.rerank.prompt import Prompt

pytest.importorskip("transformers", reason="needs the extra llm")


def test_scores_are_the_share_of_yes(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    request = few_requests[0]
    reranker = PointwiseReranker(small_lm)
    (result,) = reranker.rerank([request])
    yes, no = (small_lm.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    expected = []
    for chat in reranker.questions(request):
        with torch.inference_mode():
            logits_V = small_lm.model(torch.tensor([small_lm.encode_chat(chat)])).logits[0, -1]
        expected.append(float(torch.sigmoid(logits_V[yes] - logits_V[no])))
    assert result.scores == pytest.approx(expected, abs=1e-5)
    assert list(result.ids) == [request.ids[at] for at in sorted(range(5), key=lambda at: -expected[at])]
    assert result.complete and not result.faults and result.usage.calls == 5
    assert result.usage.prompt_tokens == sum(len(small_lm.encode_chat(chat)) for chat in reranker.questions(request))


def test_what_candidates_share_comes_first(few_requests: list[RerankRequest], small_lm: Any) -> None:
    texts = [chat[-1].text for chat in PointwiseReranker(small_lm).questions(few_requests[0])]
    heads = {text.rpartition("\n")[0] for text in texts}
    assert len(heads) == 1 and len(heads.pop()) > 100
    (result,) = PointwiseReranker(small_lm).rerank([few_requests[0]])
    assert result.usage.reused_tokens > result.usage.prompt_tokens / 2


def test_short_lists_ask_nothing(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    results = PointwiseReranker(small_lm).rerank(few_requests)
    assert [result.usage.calls for result in results] == [5, 0, 0, 4]
    assert [result.ids == result.candidates for result in results[1:3]] == [True, True]
    assert PointwiseReranker(small_lm).rerank([]) == []


def test_a_batch_gives_what_each_gives_alone(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    reranker = PointwiseReranker(small_lm)
    for together, request in zip(reranker.rerank(few_requests), few_requests, strict=True):
        (alone,) = asyncio.run(reranker.rerank_async([request]))
        assert together.ids == alone.ids and together.faults == alone.faults
        assert (together.scores or ()) == pytest.approx(alone.scores or (), abs=1e-5)


def test_a_passed_deadline_keeps_the_order(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    results = PointwiseReranker(small_lm).rerank(few_requests, deadline=time.monotonic() - 1)
    assert all(result.ids == result.candidates for result in results)
    assert [result.complete for result in results] == [False, True, True, False]
    assert results[0].faults.failed == 5 and results[0].notes == ("the deadline passed (5 times)",)


def test_candidates_without_an_answer_keep_their_places(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    """A prompt longer than the model's context has no answer."""
    request = few_requests[0]
    long = replace(request.candidates[2], text="x" * 5000)
    candidates = [*request.candidates[:2], long, *request.candidates[3:]]
    (result,) = PointwiseReranker(small_lm, item_chars=5000).rerank([replace(request, candidates=candidates)])
    assert result.ids[2] == long.item_id and result.scores is None and not result.complete
    assert result.faults.failed == 1 and "tokens" in result.notes[0]
    (short,) = PointwiseReranker(small_lm).rerank([request])
    others = [item for item in short.ids if item != long.item_id]
    assert [item for item in result.ids if item != long.item_id] == others


def test_settings_are_checked(small_lm: Any) -> None:
    base = Prompt.load("pointwise")
    with pytest.raises(InputError, match="item_chars must be a whole number from 1 on, got 0"):
        PointwiseReranker(small_lm, item_chars=0)
    with pytest.raises(InputError, match="history_items must be a whole number from 0 on, got -1"):
        PointwiseReranker(small_lm, history_items=-1)
    words = replace(base, options={"answers": ["Yes", "Yes"]})
    with pytest.raises(InputError, match="pointwise.yaml: option 'answers' must hold two words"):
        PointwiseReranker(small_lm, prompt=words)
    with pytest.raises(InputError, match="option 'Perhaps' is .* tokens"):
        long = replace(base, options={"answers": ["Yes", "Perhaps"]})
        PointwiseReranker(small_lm, prompt=long).rerank([RerankRequest(candidates=made(2))])


def made(count: int) -> list[Any]:
    from recsys.retrieval.rerank import RerankItem

    return [RerankItem(item_id=at, text=f"item {at}") for at in range(count)]


def test_a_prompt_of_another_method_is_refused(small_lm: Any) -> None:
    with pytest.raises(InputError, match=r"first\.yaml: pointwise needs the placeholder 'candidate'"):
        PointwiseReranker(small_lm, prompt="first")
    with pytest.raises(InputError, match="prompt mine: pointwise fills no placeholder 'colour'; it has candidate, "):
        mine = Prompt(name="mine", user="$candidate $colour", placeholders={"candidate": "", "colour": ""})
        PointwiseReranker(small_lm, prompt=mine)
    short = Prompt(name="mine", user="$candidate", placeholders={"candidate": ""})
    assert PointwiseReranker(small_lm, prompt=short).questions(RerankRequest(candidates=made(1)))[0][0].text == "item 0"
