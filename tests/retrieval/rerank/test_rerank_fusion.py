"""Fused scores and the choice of their weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rerank.fusion import (
    WEIGHTS,
    JudgedList,
    choose_weight,
    fused_places,
    rerank_scores,
    standardised,
)
from recsys.retrieval.rerank.result import RerankResult

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@settings(deadline=None)
@given(scores=numbers)
def test_standardised_scores_have_mean_0_and_deviation_1_or_are_0(scores: list[float]) -> None:
    found = standardised(scores)
    assert found.mean() == pytest.approx(0.0, abs=1e-6)
    assert found.std() == pytest.approx(1.0, abs=1e-6) or not found.any()


@pytest.mark.parametrize("scores", [[], [2.0], [3.0, 3.0], [1.0, math.nan], [math.inf, 0.0], [0.0, 0.0]])
def test_scores_that_tell_nothing_are_0(scores: list[float]) -> None:
    assert standardised(scores).tolist() == [0.0] * len(scores)


def test_huge_scores_keep_their_order() -> None:
    assert standardised([1e308, -1e308, 0.0]).round(3).tolist() == [1.225, -1.225, 0.0]


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), max_size=12), weight=st.floats(0, 100))
def test_any_weight_gives_a_permutation(pairs: list[tuple[float, float]], weight: float) -> None:
    earlier, rerank = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert sorted(fused_places(earlier, rerank, weight).tolist()) == list(range(len(pairs)))


def test_an_order_alone_counts_by_reciprocal_places() -> None:
    order = RerankResult(ids=("c", "a", "b"), candidates=("a", "b", "c"))
    assert rerank_scores(order).tolist() == [1 / 2, 1 / 3, 1.0]
    scored = RerankResult(ids=("c", "a", "b"), candidates=("a", "b", "c"), scores=(0.2, 0.1, 0.9))
    assert rerank_scores(scored).tolist() == [0.2, 0.1, 0.9]
    no_number = RerankResult(ids=("c", "a", "b"), candidates=("a", "b", "c"), scores=(0.2, -math.inf, 0.9))
    assert rerank_scores(no_number).tolist() == rerank_scores(order).tolist()


def test_the_gain_is_that_of_the_targets_place() -> None:
    earlier = [3.0, 2.0, 1.0]
    result = RerankResult(ids=("c", "b", "a"), candidates=("a", "b", "c"), scores=(0.0, 1.0, 2.0))
    found = JudgedList.of(result, earlier, "c")
    assert found.gain(0.0) == pytest.approx(1 / math.log2(4)) and found.gain(50.0) == 1.0
    assert JudgedList.of(result, earlier, "elsewhere").gain(1.0) == 0.0
    long = JudgedList(earlier_C=list(range(12, 0, -1)), rerank_C=[0.0] * 12, target=10)
    assert long.gain(0.0) == 0.0  # place 11


def lists(num: int, seed: int, signal: float) -> list[JudgedList]:
    """Lists whose reranker knows the target with some strength; the earlier order knows nothing."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        target, rerank = int(rng.integers(20)), rng.normal(size=20)
        rerank[target] += signal
        made.append(JudgedList(earlier_C=np.arange(20, 0, -1.0), rerank_C=rerank, target=target))
    return made


def test_a_reranker_that_knows_is_adopted_and_noise_is_not() -> None:
    good = choose_weight(lists(120, 0, 3.0))
    assert good.weight >= 1.0 and good.ndcg > good.before + 0.2 and good.num_lists == 120
    # Out of thirty rerankers that know nothing, two standard errors let through one at most.
    adopted = [choose_weight(lists(80, seed, 0.0)) for seed in range(1, 31)]
    assert sum(one.weight > 0 for one in adopted) <= 2
    assert all(one.ndcg == one.before for one in adopted if one.weight == 0)


def test_nothing_and_one_list_choose_nothing() -> None:
    assert choose_weight([]).weight == 0.0
    assert choose_weight(lists(1, 0, 9.0)).weight == 0.0
    assert choose_weight(lists(50, 0, 3.0), weights=()).weight == 0.0
    assert WEIGHTS[0] == 0.0 and list(WEIGHTS) == sorted(WEIGHTS)
