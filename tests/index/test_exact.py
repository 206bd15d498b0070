import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from recsys.index.exact import ExactIndex
from recsys.kernels.topk import largest, topk_smaller_id


def sorted_reference(vectors, queries, k, exclude=None, allow=None):
    """Sort every item by (score, id) in numpy; scores in float64, rounded once."""
    scores = (queries.double().unsqueeze(1) * vectors.double().unsqueeze(0)).sum(-1).float().numpy()
    ids = np.full((len(queries), k), -1)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for q in range(len(queries)):
        left = np.arange(len(vectors)) if allow is None else allow.numpy()
        if exclude is not None:
            left = left[~np.isin(left, exclude[q].numpy())]
        order = left[np.lexsort((left, -scores[q, left]))][:k]
        ids[q, : len(order)] = order
        best[q, : len(order)] = scores[q, order]
    return ids, best


def assert_same(hits, reference):
    assert np.array_equal(hits.ids_QK.numpy(), reference[0])
    assert np.array_equal(hits.scores_QK.numpy(), reference[1])


@settings(deadline=None, max_examples=150)
@given(
    num_items=st.integers(0, 150),
    num_queries=st.integers(0, 4),
    k=st.integers(1, 160),
    block=st.integers(1, 160),
    levels=st.sampled_from([1, 2, 5, 10_000]),
    seed=st.integers(0, 2**16),
)
def test_equals_sorting_every_score(num_items, num_queries, k, block, levels, seed):
    draw = torch.Generator().manual_seed(seed)
    # Few levels make many equal scores, on both sides of every block edge and of the k-th place.
    vectors = torch.randint(-levels, levels + 1, (num_items, 3), generator=draw) / levels
    queries = torch.randint(-levels, levels + 1, (num_queries, 3), generator=draw) / levels
    exclude = torch.randint(-1, max(num_items, 1), (num_queries, 7), generator=draw) if seed % 3 else None
    allow = torch.randperm(num_items, generator=draw)[: num_items // 2].sort().values if seed % 2 else None
    hits = ExactIndex(vectors, block_items=block).search(queries, k, exclude_QE=exclude, allow_N=allow)
    assert_same(hits, sorted_reference(vectors, queries, k, exclude, allow))


@pytest.mark.parametrize("block", [7, 1000, 4096, None])
def test_answer_does_not_depend_on_the_block_or_the_batch(block):
    draw = torch.Generator().manual_seed(3)
    vectors = torch.randn(4096, 64, generator=draw)
    vectors[2048:] = vectors[:2048]  # every score twice
    vectors[:, 5] *= 1000  # cancellation: float32 sums in another order differ in the last places
    queries = torch.randn(300, 64, generator=draw)
    whole = ExactIndex(vectors, block_items=2048).search(queries, 51)
    part = ExactIndex(vectors, block_items=block).search(queries[17:20], 51)
    assert torch.equal(whole.ids_QK[17:20], part.ids_QK)
    assert torch.equal(whole.scores_QK[17:20], part.scores_QK)
    assert_same(part, sorted_reference(vectors, queries[17:20], 51))


def test_more_ties_at_the_last_place_than_spare_candidates():
    vectors = torch.zeros(5000, 4)
    vectors[4000:, 0] = 1.0
    vectors[4990, 0] = 2.0
    hits = ExactIndex(vectors, block_items=512).search(torch.tensor([[1.0, 0, 0, 0], [0.0, 1, 0, 0]]), 5)
    assert hits.ids_QK.tolist() == [[4990, 4000, 4001, 4002, 4003], [0, 1, 2, 3, 4]]


def test_memory_of_a_search_is_bounded_by_the_block():
    seen = []
    index = ExactIndex(torch.randn(3000, 4), block_items=100)
    blocks = index._blocks(torch.randn(5, 4), None, None, 3000)
    seen = [score_QB.shape[1] for _, _, score_QB in blocks]
    assert max(seen) == 100
    assert sum(seen) == 3000


@settings(deadline=None)
@given(width=st.integers(1, 400), k=st.integers(1, 12), most=st.sampled_from([5, 10**6]), seed=st.integers(0, 2**16))
def test_largest_by_groups_equals_topk(width, k, most, seed):
    score = torch.randint(-most, most + 1, (3, width), generator=torch.Generator().manual_seed(seed)).float()
    score[0] = torch.arange(width).float()  # the best stand in the last columns, which may be no whole group
    k = min(k, width)
    value, column = largest(score, k)
    assert torch.equal(value.sort(1, descending=True).values, score.topk(k).values)
    assert torch.equal(score.gather(1, column), value)
    assert all(len(set(row)) == k for row in column.tolist())


def test_topk_orders_negative_zero_and_subnormal_scores():
    score = torch.tensor([[-1.0, 0.0, -0.0, 1e-42, -1e-42, -torch.inf, 3.0, 3.0]])
    ids = torch.tensor([[5, 9, 2, 7, 8, 1, 2_000_000_000, -1]])
    best, kept = topk_smaller_id(score, ids, 8)
    assert kept.tolist() == [[2_000_000_000, 7, 2, 9, 8, 5, -1, -1]]
    assert best[0, 0] == 3.0
    assert best[0, -2:].tolist() == [-torch.inf, -torch.inf]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_an_item_that_rounding_hides_behind_many_others_is_found(order):
    """2^24 + 1 − 2^24 is 1, and 0 where float32 adds it up in that order."""
    hidden = torch.tensor([2.0**24, 1.0, -(2.0**24)])[list(order)]
    vectors = torch.cat([torch.tensor([[0.0, 0.5, 0.0]]).repeat(200, 1), hidden[None]])
    for block_items in (None, 64):
        hits = ExactIndex(vectors, block_items=block_items).search(torch.ones(1, 3), 2)
        assert hits.ids_QK.tolist() == [[200, 0]] and hits.scores_QK.tolist() == [[1.0, 0.5]]
