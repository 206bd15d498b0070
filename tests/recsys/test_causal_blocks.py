"""Attention in blocks of rows beside the plain one over all pairs."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from recsys import causal_blocks
from recsys.causal_blocks import attend_blocks, time_runs
from recsys.time_features import GAP_BOUNDARIES, NUM_BUCKETS, gap_bucket


def plain(q, k, v, bias_BHLL, softmax):
    """The definition: every pair of rows, then the future is taken out."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias_BHLL
    future = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
    if softmax:
        weight = score.masked_fill(future, -torch.inf).softmax(-1)
    else:
        weight = torch.nn.functional.silu(score).masked_fill(future, 0.0)
    return (weight @ v).transpose(1, 2)


def times(sequences, length, seed, largest):
    draw = np.random.default_rng(seed)
    gap = np.exp(draw.uniform(0, largest, (sequences, length))).astype(np.int64) * (draw.random((1, length)) < 0.8)
    return torch.from_numpy(1_700_000_000 + gap.cumsum(1))


@settings(deadline=None, max_examples=40)
@given(
    sequences=st.integers(1, 4),
    length=st.integers(1, 20),
    heads=st.integers(1, 3),
    rows=st.integers(1, 24),
    scores=st.sampled_from([1, 200, 2**18]),
    largest=st.sampled_from([0.0, 3.0, 12.0, 20.0]),
    softmax=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_blocks_equal_all_pairs(sequences, length, heads, rows, scores, largest, softmax, seed):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(sequences, length, heads, 4) for _ in range(3))
    table = torch.randn(NUM_BUCKETS, heads)
    time = times(sequences, length, seed, largest)
    bucket = gap_bucket((time[:, :, None] - time[:, None]).clamp_min(0))
    runs = time_runs(time, torch.ones_like(time, dtype=torch.bool))
    assert runs is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_blocks, "_ROWS", rows)
        patch.setattr(causal_blocks, "_SCORES", scores)
        got = attend_blocks(q, k, v, runs.bias(table), softmax=softmax)
        bare = attend_blocks(q, k, v, None, softmax=softmax)
    wanted = plain(q, k, v, table[bucket].permute(0, 3, 1, 2), softmax)
    assert torch.allclose(got.double(), wanted, atol=1e-5)
    assert torch.allclose(bare.double(), plain(q, k, v, 0.0, softmax), atol=1e-5)


@pytest.mark.parametrize("softmax", [True, False])
def test_later_rows_change_nothing_before_them(softmax):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 300, 2, 8) for _ in range(3))
    time = times(2, 300, 0, 10.0)
    known = torch.ones_like(time, dtype=torch.bool)
    table = torch.randn(NUM_BUCKETS, 2)
    before = attend_blocks(q, k, v, time_runs(time, known).bias(table), softmax=softmax)
    k[:, 170:], v[:, 170:], time[:, 170:] = 9.0, -9.0, time[:, 170:] + 5_000
    after = attend_blocks(q, k, v, time_runs(time, known).bias(table), softmax=softmax)
    assert torch.allclose(before[:, :170], after[:, :170], atol=1e-6)
    assert not torch.allclose(before[:, 170:], after[:, 170:], atol=1e-2)


def test_gaps_at_the_edges_of_buckets():
    edges = np.concatenate([[0], np.array(GAP_BOUNDARIES[:40]), np.array(GAP_BOUNDARIES[:40]) - 1])
    time = torch.from_numpy(np.sort(10**9 - edges))[None]
    table = torch.arange(NUM_BUCKETS, dtype=torch.float32)[:, None]
    runs = time_runs(time, torch.ones_like(time, dtype=torch.bool))
    length = time.shape[1]
    got = runs.bias(table).rows(slice(0, 1), slice(0, length))[0].tril()
    assert torch.equal(got, gap_bucket(time[0, :, None] - time[0]).float().tril())


def test_unknown_and_falling_times_have_no_runs():
    time = torch.tensor([[5, 9, 9], [1, 2, 3]])
    known = torch.ones_like(time, dtype=torch.bool)
    assert time_runs(time, known) is not None
    assert time_runs(time, known & torch.tensor([True, True, False])) is None
    assert time_runs(torch.tensor([[5, 9, 8]]), known[:1]) is None
