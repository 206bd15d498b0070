"""Codes that may follow a prefix: what a walk over all items finds, and the loss among them alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recsys.code_children import CodeChildren


def continuations(codes, level, prefix):
    return {row[level] for row in codes.tolist() if row[:level] == list(prefix)}


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    num_items=st.integers(1, 30),
    seed=st.integers(0, 2**16),
)
def test_masks_and_steps_equal_a_walk_over_all_items(sizes, num_items, seed):
    rng = np.random.default_rng(seed)
    codes_IL = torch.from_numpy(np.stack([rng.integers(0, size, num_items) for size in sizes], 1))
    children = CodeChildren.of(codes_IL, sizes)
    item_N = torch.from_numpy(rng.integers(0, num_items, 7))
    walked_N = torch.zeros(7, dtype=torch.int64)
    for level, size in enumerate(sizes):
        prefix_N = children.prefix_IL[item_N, level]
        assert torch.equal(walked_N, prefix_N)
        logit_NK = torch.from_numpy(rng.normal(size=(7, size))).float()
        masked_NK = children.masked(level, logit_NK, prefix_N)
        for row, item in enumerate(item_N.tolist()):
            allowed = continuations(codes_IL, level, codes_IL[item, :level].tolist())
            wanted = [float(logit_NK[row, code]) if code in allowed else -np.inf for code in range(size)]
            assert masked_NK[row].tolist() == wanted
            for code in range(size):
                found = children.follow(level, prefix_N[row : row + 1], torch.tensor([code]))
                assert (int(found) >= 0) == (code in allowed)
        walked_N = children.follow(level, prefix_N, codes_IL[item_N, level])
        assert (walked_N >= 0).all()


def test_the_loss_is_zero_where_only_one_code_can_follow():
    codes_IL = torch.tensor([[0, 3, 1], [0, 4, 2], [1, 2, 2], [1, 2, 0]])
    children = CodeChildren.of(codes_IL, (5, 5, 5))
    torch.manual_seed(0)
    logits = [torch.randn(4, 5, requires_grad=True) for _ in range(3)]
    loss_LN = torch.stack(
        [
            F.cross_entropy(
                children.masked(level, logits[level], children.prefix_IL[:, level]),
                codes_IL[:, level],
                reduction="none",
            )
            for level in range(3)
        ]
    )
    assert (loss_LN[0] > 0).all()
    assert (loss_LN[1, :2] > 0).all() and (loss_LN[1, 2:] == 0).all()  # 1 → 2 alone
    assert (loss_LN[2, :2] == 0).all() and (loss_LN[2, 2:] > 0).all()
    slopes = torch.autograd.grad(loss_LN.sum(), logits)
    assert all(torch.isfinite(slope).all() for slope in slopes)
    assert (slopes[1][2:] == 0).all() and (slopes[0][:, 2:] == 0).all()


def test_a_prefix_that_there_is_not_leads_nowhere():
    children = CodeChildren.of(torch.tensor([[0, 1], [2, 0]]), (3, 2))
    assert children.follow(0, torch.tensor([0, 0, -1]), torch.tensor([1, 2, 0])).tolist() == [-1, 1, -1]
    assert (children.masked(1, torch.zeros(1, 2), torch.tensor([-1])) == -torch.inf).all()


def test_codes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="codes of level 2 must be from 0 to 2, got 0 to 3"):
        CodeChildren.of(torch.tensor([[0, 1], [2, 3], [1, 0]]), (3, 3))
