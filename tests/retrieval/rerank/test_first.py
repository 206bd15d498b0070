"""FIRST: one look at the first label orders a window."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.rerank import RerankRequest
from recsys.retrieval.rerank.first import FirstReranker
from recsys.retrieval.rerank.windows import num_windows, sliding_windows


@settings(deadline=None)
@given(count=st.integers(0, 60), window=st.integers(2, 26), data=st.data())
def test_windows_go_from_the_tail_to_the_head(count: int, window: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, window))
    work = sliding_windows(count, window, step)
    seen: list[tuple[int, ...]] = []
    try:
        places = next(work)[0]
        while True:
            seen.append(places)
            places = work.send([range(len(places))[::-1]])[0]
    except StopIteration as done:
        assert sorted(done.value) == list(range(count))
    assert len(seen) == num_windows(count, window, step)
    assert all(2 <= len(places) <= window for places in seen)
    if count > 1:
        assert set().union(*seen) == set(range(count)), "nobody is left out"
        assert seen[0][-1] == count - 1


def test_the_best_of_all_comes_to_the_head() -> None:
    """With a right order in every window, a step of half a window brings up the best half of a window."""
    values = [(at * 37) % 45 for at in range(45)]
    work = sliding_windows(45, 20, 10)
    try:
        places = next(work)[0]
        while True:
            places = work.send([sorted(range(len(places)), key=lambda at: -values[places[at]])])[0]  # noqa: B023
    except StopIteration as done:
        assert [values[at] for at in done.value[:10]] == list(range(44, 34, -1))


def log_probs(lm: Any, reranker: FirstReranker, request: RerankRequest, places: tuple[int, ...]) -> list[float]:
    ids = lm.encode_chat(reranker.question(request, places), "[")
    with torch.inference_mode():
        log_prob_V = lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    letters = "ABCDEFGHIJKLMNOPQRST"[: len(places)]
    return [float(log_prob_V[lm.tokenizer.encode(letter, add_special_tokens=False)[0]]) for letter in letters]


def test_scores_are_the_labels_likelihoods(small_lm: Any, requests_of_many_lengths: list[RerankRequest]) -> None:
    reranker = FirstReranker(small_lm)
    results = reranker.rerank(requests_of_many_lengths)
    assert [result.usage.calls for result in results] == [0, 0, 1, 1, 1, 2, 4]
    for request, result in zip(requests_of_many_lengths[2:5], results[2:5], strict=True):
        count = len(request.ids)
        expected = log_probs(small_lm, reranker, request, tuple(range(count)))
        assert result.scores == pytest.approx(expected, abs=1e-4)
        assert list(result.ids) == [request.ids[at] for at in sorted(range(count), key=lambda at: -expected[at])]
        assert result.usage.generated_tokens == 0
    assert all(result.scores is None for result in results[5:]), "of several windows there is an order only"
    assert all(result.complete and not result.faults for result in results)


def test_windows_follow_each_other(small_lm: Any, requests_of_many_lengths: list[RerankRequest]) -> None:
    """The second window holds what the first one brought up."""
    request, reranker = requests_of_many_lengths[5], FirstReranker(small_lm)
    order = list(range(21))
    for start, end in ((1, 21), (0, 11)):
        places = tuple(order[start:end])
        values = log_probs(small_lm, reranker, request, places)
        order[start:end] = [places[at] for at in sorted(range(len(places)), key=lambda at: -values[at])]
    assert list(reranker.rerank([request])[0].ids) == [request.ids[at] for at in order]


def test_a_batch_gives_what_each_gives_alone(small_lm: Any, requests_of_many_lengths: list[RerankRequest]) -> None:
    reranker = FirstReranker(small_lm, window=8, step=4)
    together = reranker.rerank(requests_of_many_lengths)
    alone = [reranker.rerank([request])[0] for request in requests_of_many_lengths]
    assert [result.ids for result in together] == [result.ids for result in alone]


def test_a_passed_deadline_keeps_the_order(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    results = FirstReranker(small_lm).rerank(few_requests, deadline=time.monotonic() - 1)
    assert all(result.ids == result.candidates and result.scores is None for result in results)
    assert [result.complete for result in results] == [False, True, True, False]


def test_settings_are_checked(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    with pytest.raises(InputError, match="window 27 is too wide: this method tells at most 26 candidates apart"):
        FirstReranker(small_lm, window=27)
    with pytest.raises(InputError, match="step 6 leaves out candidates between windows of 5"):
        FirstReranker(small_lm, window=5, step=6)
    with pytest.raises(InputError, match="window must be a whole number from 2 on"):
        FirstReranker(small_lm, window=1)
    assert [len(FirstReranker(small_lm).questions(request)) for request in few_requests] == [1, 0, 0, 1]
