"""Pairwise: sorts that need few comparisons, and comparisons asked both ways."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import combinations
from math import log2
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.rerank import RerankRequest
from recsys.retrieval.rerank.in_step import in_step
from recsys.retrieval.rerank.lm.local import LocalLanguageModel
from recsys.retrieval.rerank.pair_sorts import SORTS, Pair, win_shares
from recsys.retrieval.rerank.pairwise import PairwiseReranker
from recsys.retrieval.rerank.pointwise import PointwiseReranker
from recsys.retrieval.rerank.result import Faults

Preference = Callable[[int, int], float]


def run(sort: str, count: int, top: int, prefer: Preference) -> tuple[list[int], int, int]:
    """Order, comparisons, batches."""
    work = SORTS[sort](count, top)
    comparisons = batches = 0
    try:
        asked = next(work)
        while True:
            assert all(0 <= left < right < count for left, right in asked)
            comparisons += len(asked)
            batches += 1
            asked = work.send([prefer(left, right) for left, right in asked])
    except StopIteration as done:
        return done.value, comparisons, batches


@settings(deadline=None)
@given(values=st.lists(st.integers(0, 6), max_size=24), top=st.integers(1, 12), sort=st.sampled_from(sorted(SORTS)))
def test_consistent_comparisons_sort(values: list[int], top: int, sort: str) -> None:
    def prefer(left: int, right: int) -> float:
        return 0.5 + 0.5 * ((values[left] > values[right]) - (values[left] < values[right]))

    order, comparisons, _ = run(sort, len(values), top, prefer)
    truth = sorted(range(len(values)), key=lambda at: -values[at])
    assert sorted(order) == list(range(len(values)))
    assert order[:top] == truth[:top], "equal ones stay in their earlier order"
    if sort == "heap":
        assert order[top:] == sorted(order[top:])
        count = max(len(values), 2)
        assert comparisons <= 2 * count + 2 * top * (log2(count) + 1)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(0, 15), top=st.integers(1, 15), sort=st.sampled_from(sorted(SORTS))
)
def test_contradictions_still_give_a_permutation(seed: int, count: int, top: int, sort: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randint(0, 3, (15, 15), generator=generator).tolist()
    order, _, _ = run(sort, count, top, lambda left, right: answers[left][right] / 2)
    assert sorted(order) == list(range(count))
    assert order == run(sort, count, top, lambda left, right: answers[left][right] / 2)[0]


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_no_preference_changes_nothing(sort: str) -> None:
    assert run(sort, 20, 10, lambda left, right: 0.5)[0] == list(range(20))


def test_comparisons_that_are_needed() -> None:
    in_order: Preference = lambda left, right: 1.0  # noqa: E731
    assert run("all", 20, 10, in_order)[1:] == (190, 1)
    assert run("sliding", 20, 10, in_order)[1] == 19, "a pass without a change is the last"
    reverse: Preference = lambda left, right: 0.0  # noqa: E731
    assert run("sliding", 20, 3, reverse)[:2] == ([19, 18, 17, *range(17)], 19 + 18 + 17)
    order, comparisons, batches = run("heap", 20, 10, reverse)
    assert order[:10] == list(range(19, 9, -1)) and comparisons < 110
    assert batches < comparisons, "parts of the heap are made side by side"


def test_work_in_step_is_the_work_alone() -> None:
    sizes = [3, 0, 8, 1, 5]

    def prefer(left: int, right: int) -> float:
        return float((left * 7 + right * 3) % 2)

    step = in_step([SORTS["heap"](size, 3) for size in sizes])
    batches = 0
    try:
        asked = next(step)
        while True:
            batches += 1
            asked = step.send([prefer(*pair) for _, pair in asked])
    except StopIteration as done:
        alone = [run("heap", size, 3, prefer) for size in sizes]
        assert done.value == [order for order, _, _ in alone]
        assert batches == max(count for _, _, count in alone)


def test_shares_of_all_pairs() -> None:
    pairs: dict[Pair, float] = dict.fromkeys(combinations(range(4), 2), 1.0)
    assert win_shares(4, pairs) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert win_shares(1, {}) == [0.0]


@pytest.fixture(scope="module")
def truth(small_lm: Any, few_requests: list[RerankRequest]) -> dict[Pair, float]:
    """Preferences of the first request by the model itself, one forward pass each."""
    reranker = PairwiseReranker(small_lm)
    first, second = (small_lm.tokenizer.encode(word, add_special_tokens=False)[0] for word in "AB")
    preferred = {}
    for pair in combinations(range(5), 2):
        votes = []
        for places in (pair, pair[::-1]):
            lines = reranker.lines(few_requests[0], places, "AB")
            ids = small_lm.encode_chat(reranker.chat(few_requests[0], candidates=lines), "[")
            with torch.inference_mode():
                logits_V = small_lm.model(torch.tensor([ids])).logits[0, -1]
            votes.append(bool(logits_V[first] > logits_V[second]))
        preferred[pair] = 0.5 if votes[0] == votes[1] else float(votes[0])
    return preferred


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_both_orders_are_asked(sort: str, small_lm: Any, few_requests: list[RerankRequest], truth: Any) -> None:
    result = PairwiseReranker(small_lm, sort=sort).rerank([few_requests[0]])[0]
    order = run(sort, 5, 10, lambda left, right: truth[left, right])[0]
    assert list(result.ids) == [few_requests[0].ids[at] for at in order]
    assert result.complete and not result.faults
    assert result.usage.calls % 2 == 0 and result.usage.calls <= 20, "no pair is asked twice"
    if sort == "all":
        assert result.usage.calls == 20 and result.scores == pytest.approx(win_shares(5, truth))
    else:
        assert result.scores is None


def test_requests_are_sorted_side_by_side(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    reranker = PairwiseReranker(small_lm, sort="heap", top=2)
    together = reranker.rerank(few_requests)
    alone = [reranker.rerank([request])[0] for request in few_requests]
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert [result.usage.calls for result in together] == [result.usage.calls for result in alone]
    assert together[1].usage.calls == together[2].usage.calls == 0


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_a_passed_deadline_keeps_the_order(sort: str, small_lm: Any, few_requests: list[RerankRequest]) -> None:
    results = PairwiseReranker(small_lm, sort=sort).rerank(few_requests, deadline=time.monotonic() - 1)
    assert all(result.ids == result.candidates for result in results)
    assert [result.complete for result in results] == [False, True, True, False]
    assert results[0].notes == ("the deadline passed",) and results[0].usage.calls == 0


def test_likelihoods_that_are_no_numbers_are_counted(small_lm_folder: Path, few_requests: list[RerankRequest]) -> None:
    lm = LocalLanguageModel.load(small_lm_folder, device="cpu")
    lm.model.lm_head.weight.fill_(math.nan)
    for method in (*(PairwiseReranker(lm, sort=sort) for sort in sorted(SORTS)), PointwiseReranker(lm)):
        result = method.rerank(few_requests)[0]
        assert result.ids == few_requests[0].ids and result.usage.calls
        assert result.faults == Faults(malformed=result.usage.calls), method.name


def test_settings_are_checked(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    with pytest.raises(InputError, match="sort 'bubble' is unknown; give one of all, heap, sliding"):
        PairwiseReranker(small_lm, sort="bubble")
    with pytest.raises(InputError, match="top must be a whole number from 1 on, got 0"):
        PairwiseReranker(small_lm, top=0)
    assert [len(PairwiseReranker(small_lm).questions(request)) for request in few_requests] == [2, 0, 0, 2]
    assert PairwiseReranker(small_lm, sort="all").name == "pairwise-all"
