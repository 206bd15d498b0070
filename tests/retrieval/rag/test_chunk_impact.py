import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rag.chunk_impact import context_impact, order_distance, prefix_overlap, recompute_share

CHUNKS = st.lists(st.tuples(st.integers(0, 4)), max_size=5)


def test_overlap_is_of_attention_and_order():
    old = [(1,), (2,), (3,)]
    assert prefix_overlap([6.0, 3.0, 1.0], old, old) == 1
    assert prefix_overlap([6.0, 3.0, 1.0], old, [(3,), (8,), (9,)]) == pytest.approx(1 / 10)
    assert prefix_overlap([6.0, 3.0, 1.0], old, [(2,), (1,)]) == 0
    assert prefix_overlap([6.0, 3.0, 1.0], old, [(1,), (3,), (2,)]) == pytest.approx(1 - 1 / 3)
    assert prefix_overlap([0.0, 0.0], [(1,), (2,)], [(1,)]) == 1 / 2


def test_a_chunk_that_stood_behind_nothing_knows_nothing_of_its_context():
    assert prefix_overlap([], [], [(1,)]) == 0 and prefix_overlap([], [], []) == 1


def test_a_chunk_that_comes_twice():
    assert prefix_overlap([1.0, 3.0], [(1,), (1,)], [(1,)]) == 1 / 4
    assert prefix_overlap([1.0, 3.0], [(1,), (1,)], [(1,), (2,), (1,)]) == 1
    assert order_distance([(1,), (1,)], [(1,), (1,)]) == 0


def test_more_from_outside_is_more_impact():
    impacts = [context_impact([mass], [10], 5.0, 10) for mass in (0.0, 1.0, 5.0, 500.0)]
    assert impacts == sorted(impacts) and impacts[0] == 0.5 and impacts[2] == 1 / (1 + math.exp(-1))
    assert impacts[-1] <= 1 and context_impact([1.0], [3], 0.0, 2) == 1


@settings(deadline=None)
@given(old=CHUNKS, new=CHUNKS, alpha=st.floats(0, 1e6) | st.just(math.inf), impact=st.floats(0.5, 1), data=st.data())
def test_everything_is_a_share(old, new, alpha, impact, data):
    inter = data.draw(st.lists(st.floats(0, 100), min_size=len(old), max_size=len(old)))
    overlap = prefix_overlap(inter, old, new)
    assert 0 <= overlap <= 1 + 1e-9 and 0 <= order_distance(old, new) <= 1
    assert 0 <= recompute_share(alpha, impact, min(overlap, 1.0)) <= 1
    assert prefix_overlap(inter, old, old) == pytest.approx(1)
    assert order_distance(old, new) == order_distance(new, old)
