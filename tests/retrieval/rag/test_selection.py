"""Fused ranks, places in a prompt, and passages chosen under a budget, beside every possible choice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rag.chunk_search import SearchSettings, joined_texts, of_sets, search_chunks
from recsys.retrieval.rag.fused_ranks import fused_ranks
from recsys.retrieval.rag.placement import strongest_at_both_ends
from recsys.retrieval.rag.selection import PassageUtility, greedy, text_similarity, utility_of


def world(seed: int, count: int = 9) -> tuple[PassageUtility, list[int], int]:
    """A made choice: random relevance, directions, words and costs."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=(count, 5))
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    utility = PassageUtility(
        rng.random(count), np.clip(vector @ vector.T, 0, 1), rng.random((count, 6)) < 0.3, np.full(6, 1 / 6)
    )
    return utility, rng.integers(10, 120, count).tolist(), 200


def best_of_all(utility: PassageUtility, tokens: Sequence[int], budget: int) -> float:
    sets = (c for size in range(len(tokens) + 1) for c in itertools.combinations(range(len(tokens)), size))
    return max(utility(chosen) for chosen in sets if sum(tokens[number] for number in chosen) <= budget)


def test_ranks_are_fused_by_hand() -> None:
    fused = dict(fused_ranks({"a": [5, 6], "b": [6, 7]}, k=60))
    assert fused == {6: 1 / 62 + 1 / 61, 5: 1 / 61, 7: 1 / 62}
    assert [n for n, _ in fused_ranks({"a": [9, 1], "b": [1, 9]})] == [1, 9]  # equal in all: the smaller number
    assert [n for n, _ in fused_ranks({"a": [4, 4, 8]})] == [4, 8]
    assert [n for n, _ in fused_ranks({"a": [4], "b": [8]}, weights={"a": 0.5})] == [8, 4]
    assert fused_ranks({"a": [4]}, weights={"a": 0}) == [] == fused_ranks({})
    with pytest.raises(ValueError, match="k must be above 0"):
        fused_ranks({}, k=0)
    with pytest.raises(ValueError, match="the weight of a must be at least 0"):
        fused_ranks({"a": [1]}, weights={"a": float("nan")})


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 20), unique=True)))
def test_fusing_keeps_everything_and_does_not_depend_on_names_order(lists: dict[str, list[int]]) -> None:
    fused = fused_ranks(lists)
    assert {number for number, _ in fused} == {number for one in lists.values() for number in one}
    assert fused == fused_ranks(dict(reversed(lists.items())))


@given(st.lists(st.integers()))
def test_the_strongest_stand_at_both_ends(ranked: list[int]) -> None:
    placed = strongest_at_both_ends(list(enumerate(ranked)))
    assert sorted(placed) == list(enumerate(ranked))
    if len(placed) > 1:
        assert placed[0][0] == 0 and placed[-1][0] == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_greedy_and_tree_stay_within_the_budget_and_below_the_optimum(seed: int) -> None:
    utility, tokens, budget = world(seed, 7)
    best = best_of_all(utility, tokens, budget)
    for found in (
        greedy(utility, tokens, budget),
        search_chunks(of_sets(utility), tokens, budget, any_order=True),
    ):
        assert len(set(found.chosen)) == len(found.chosen)
        assert found.tokens == sum(tokens[number] for number in found.chosen) <= budget
        assert found.value == pytest.approx(utility(found.chosen)) and found.value <= best + 1e-9


def test_the_tree_finds_the_optimum_that_greedy_misses() -> None:
    greedy_share, tree_share, better = [], [], 0
    for seed in range(30):
        utility, tokens, budget = world(seed)
        best = best_of_all(utility, tokens, budget)
        one = greedy(utility, tokens, budget)
        two = search_chunks(of_sets(utility), tokens, budget, any_order=True, start=one.chosen)
        assert two.value >= one.value - 1e-9
        greedy_share.append(one.value / best)
        tree_share.append(two.value / best)
        better += two.value > one.value + 1e-9
    assert np.mean(tree_share) > 0.999 and np.mean(greedy_share) < 0.995 and better >= 5


def test_a_pair_that_only_helps_together_is_found() -> None:
    # A reward that greedy cannot climb: two halves of an answer are worth nothing alone.
    def reward(orders: Sequence[tuple[int, ...]]) -> list[float]:
        return [1.0 if {3, 5} <= set(order) else 0.2 if 0 in order else 0.0 for order in orders]

    tokens = [10] * 8
    assert not {3, 5} <= set(greedy(lambda chosen: reward([tuple(chosen)])[0], tokens, 40).chosen)
    assert {3, 5} <= set(search_chunks(reward, tokens, 40, any_order=True).chosen)


def test_order_counts_where_the_reward_says_so() -> None:
    def reward(orders: Sequence[tuple[int, ...]]) -> list[float]:
        return [1.0 if order == (2, 0, 1) else 0.1 * len(order) * (order[0] == 2) for order in orders]

    assert search_chunks(reward, [1, 1, 1], 3).chosen == (2, 0, 1)


def test_limits_of_a_search() -> None:
    utility, tokens, budget = world(1)
    few = search_chunks(of_sets(utility), tokens, budget, settings=SearchSettings(max_evaluations=12))
    assert 9 <= few.evaluations <= 12
    assert len(search_chunks(of_sets(utility), tokens, 10**6, settings=SearchSettings(most=2)).chosen) <= 2
    late = search_chunks(of_sets(utility), tokens, budget, start=[0], deadline=time.monotonic() - 1)
    assert not late.complete and late.chosen in ((), (0,))
    assert search_chunks(of_sets(utility), tokens, 5).chosen == () == greedy(utility, tokens, 5).chosen
    assert search_chunks(of_sets(utility), [], 5).chosen == () == greedy(lambda chosen: 0.0, [], 5).chosen
    same = [search_chunks(of_sets(utility), tokens, budget) for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        SearchSettings(iterations=0)
    with pytest.raises(ValueError, match="less than 0 tokens"):
        greedy(utility, [-1] * 9, 5)


def test_what_says_the_same_is_not_chosen_twice() -> None:
    texts = ["a red wooden train with wagon", "a red wooden train with wagon", "price of a ship", "nothing at all here"]
    utility = utility_of("price of a red train", texts, [1.0, 1.0, 0.6, 0.0])
    assert set(greedy(utility, [10] * 4, 100).chosen) == {0, 2}
    assert utility([0]) == pytest.approx(utility([1])) and utility([0, 1]) < utility([0]) + 1e-9
    same = text_similarity(texts)
    assert same[0, 1] == pytest.approx(1) and same[0, 2] == 0 and np.array_equal(same, same.T)


def test_a_model_scores_joined_texts_in_one_batch() -> None:
    asked: list[list[tuple[str, str]]] = []

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        asked.append(pairs)
        return [len(text) / 100 for _, text in pairs]

    found = search_chunks(joined_texts("why", ["aa", "bbb", "c"], score), [1, 1, 1], 2)
    assert set(found.chosen) == {0, 1} and len(asked[0]) == 3
    assert asked[0] == [("why", "aa"), ("why", "bbb"), ("why", "c")]
