"""The choice among candidates: diversity by its plain definition, chance by its stated probabilities."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rules.noise import uniforms
from recsys.retrieval.rules.rule import MMR, Cap, Explore
from recsys.retrieval.rules.selection import select


def plain_mmr(score, vector, k, lam):
    """argmax over the rest of λ · score − (1 − λ) · max cosine with what is chosen, one by one."""
    chosen: list[int] = []
    while len(chosen) < min(k, len(score)):
        value = []
        for at in range(len(score)):
            near = max((float((vector[at] * vector[other]).sum()) for other in chosen), default=0.0)
            value.append(-np.inf if at in chosen else lam * score[at] - (1 - lam) * near)
        chosen.append(int(np.argmax(value)))
    return chosen


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**16), num=st.integers(1, 12), k=st.integers(1, 12), lam=st.floats(0, 1), ties=st.booleans()
)
def test_diversity_is_its_plain_definition(seed, num, k, lam, ties):
    rng = np.random.default_rng(seed)
    score = np.sort(rng.integers(0, 3, num) / 2.0 if ties else rng.random(num))[::-1]
    vector = rng.normal(size=(num, 3))
    vector = rng.integers(-1, 2, (num, 3)).astype(float) if ties else vector / np.linalg.norm(vector, axis=1)[:, None]
    made = select(score, np.arange(num), k, mmr=MMR(lam, scale=False), vector_CD=vector)
    assert made.places == plain_mmr(score, vector, k, lam)


@pytest.mark.parametrize("explore", [Explore(1, temperature=0.7), Explore(1, epsilon=0.4)])
def test_pages_come_as_often_as_their_propensities_say(explore):
    score, draws = np.array([1.0, 0.6, 0.3, -0.5]), 3000
    groups = [("a",), ("a",), ("b",), ()]
    pages: Counter[tuple[int, ...]] = Counter()
    chance: dict[tuple[int, ...], float] = {}
    for user in range(draws):
        made = select(score, np.array([5, 2, 9, 4]), 3, caps=[(Cap("c", 1), groups)], explore=explore, key=str(user))
        page = tuple(made.places)
        pages[page] += 1
        chance.setdefault(page, float(np.prod(made.propensity)))
        assert chance[page] == pytest.approx(np.prod(made.propensity))
    possible = [page for page in permutations(range(4), 3) if not {0, 1} <= set(page)]
    assert set(pages) == set(possible) and sum(chance.values()) == pytest.approx(1.0)
    statistic = sum((pages[page] - draws * chance[page]) ** 2 / (draws * chance[page]) for page in possible)
    assert statistic < 33  # chi-square of 11 degrees of freedom: p = 0.0005


def test_plackett_luce_by_hand():
    score = np.log(np.array([6.0, 3.0, 1.0]))
    made = select(score, np.arange(3), 3, explore=Explore(4, temperature=1.0), key="someone")
    weight = np.exp(score)[made.places]
    assert made.propensity == pytest.approx([weight[0] / 10, weight[1] / weight[1:].sum(), 1.0])
    cold = select(score, np.arange(3), 3, explore=Explore(4, temperature=5e-324), key="someone")
    assert cold.places == [0, 1, 2] and cold.propensity == [1.0, 1.0, 1.0]


def test_the_seed_decides_and_the_others_do_not():
    score, item = np.zeros(40), np.arange(40)
    rule = Explore(9, temperature=1.0)
    first = select(score, item, 10, explore=rule, key="u1")
    assert select(score, item, 10, explore=rule, key="u1") == first
    assert select(score, item, 10, explore=Explore(10, temperature=1.0), key="u1").places != first.places
    assert select(score, item, 10, explore=rule, key="u2").places != first.places
    # A candidate less, and not one that was chosen: the rest keep their numbers.
    gone = next(at for at in range(40) if at not in first.places)
    kept = np.delete(item, gone)
    fewer = select(score[:39], kept, 10, explore=rule, key="u1")
    assert kept[fewer.places].tolist() == item[first.places].tolist()


def test_any_key_has_numbers():
    assert select(np.zeros(3), np.arange(3), 3, explore=Explore(1, epsilon=0.5), key="\ud800").propensity[-1] == 1


def test_numbers_are_uniform_and_their_own():
    drawn = np.stack([uniforms(f"key {row}", np.arange(500)) for row in range(40)])
    assert drawn.min() > 0 and drawn.max() < 1
    assert np.histogram(drawn, 10, (0, 1))[0] == pytest.approx(2000, abs=200)
    assert abs(np.corrcoef(drawn[:, 1:].ravel(), drawn[:, :-1].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn[1:].ravel(), drawn[:-1].ravel())[0, 1]) < 0.03
    assert np.array_equal(uniforms("key 3", np.array([7, 2])), drawn[3][[7, 2]])
