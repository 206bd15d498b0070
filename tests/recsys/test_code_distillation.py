"""Labels of dense retrieval for heads of semantic IDs: what a walk over all items says of every prefix and item."""

from __future__ import annotations

import pytest
import torch

from recsys.code_children import CodeChildren
from recsys.code_distillation import CodeDistillation

SIZES = (3, 4, 2)


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    code_IL = torch.stack([torch.randint(size, (20,), generator=generator) for size in SIZES], 1)
    vectors_ID = torch.randn(20, 6, generator=generator)
    query_ND = torch.randn(7, 6, generator=generator)
    target_N = torch.randint(20, (7,), generator=generator)
    return code_IL, vectors_ID, query_ND, target_N


def distillation(parts, share, candidates=64):
    code_IL, vectors_ID, *_ = parts
    counts_I = torch.arange(20) % 4
    children = CodeChildren.of(code_IL, SIZES)
    return CodeDistillation(vectors_ID, counts_I, share, candidates, children)


def labels_of(code_IL, p_I, prefix, level):
    """Probability of every code after a prefix, by looking at every item."""
    found = torch.zeros(SIZES[level])
    for item, codes in enumerate(code_IL.tolist()):
        if codes[:level] == prefix:
            found[codes[level]] += p_I[item]
    return found / found.sum()


@pytest.mark.parametrize("among", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_loss_of_codes_is_that_of_a_walk_over_all_items(parts, share, among):
    code_IL, vectors_ID, query_ND, target_N = parts
    teacher = distillation(parts, share)
    torch.manual_seed(1)
    item_N, is_own_N, below_NX = teacher.followed(query_ND, target_N)
    logits = [torch.randn(7, size) for size in SIZES]
    found = teacher.codes_loss(logits, item_N, code_IL[item_N], is_own_N, below_NX, among)
    p_NI = (query_ND @ vectors_ID.T).softmax(1)
    wanted = 0.0
    for row, item in enumerate(item_N.tolist()):
        part = share if is_own_N[row] else 1.0
        for level, size in enumerate(SIZES):
            codes = code_IL[item].tolist()
            label_K = labels_of(code_IL, p_NI[row], codes[:level], level)
            there = label_K > 0
            logp_K = logits[level][row].masked_fill(
                ~there if among else torch.zeros(size, dtype=torch.bool), -torch.inf
            )
            logp_K = logp_K.log_softmax(0)
            own_K = torch.zeros(size)
            own_K[codes[level]] = 1.0
            label_K = part * label_K + (1.0 - part) * own_K
            wanted -= float((label_K * logp_K)[there].sum()) / 7
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_prefixes_are_those_of_the_next_item_or_of_one_that_the_teacher_holds_likely(parts):
    _, vectors_ID, query_ND, target_N = parts
    torch.manual_seed(0)
    own = distillation(parts, 0.0).followed(query_ND, target_N)
    assert torch.equal(own[0], target_N) and bool(own[1].all())
    many_N = torch.full((4000,), int(target_N[0]))
    item_N, is_own_N, _ = distillation(parts, 1.0).followed(query_ND[:1].expand(4000, -1), many_N)
    assert not is_own_N.any()
    share_I = torch.bincount(item_N, minlength=20) / 4000
    torch.testing.assert_close(share_I, (query_ND[0] @ vectors_ID.T).softmax(0), atol=0.03, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_loss_of_items_is_a_cross_entropy_over_trained_items_where_all_are_candidates(parts, share):
    _, vectors_ID, query_ND, _ = parts
    teacher = distillation(parts, share)
    trained_J = torch.tensor([item for item in range(20) if item % 4])
    item_M, log_chance_M = teacher.candidates(trained_J[:7])
    assert torch.equal(item_M, trained_J) and not log_chance_M.any()
    logit_NM = torch.randn(7, len(trained_J))
    found = teacher.items_loss(logit_NM, query_ND, trained_J[:7], item_M, log_chance_M)
    label_NM = share * (query_ND @ vectors_ID[trained_J].T).softmax(1)
    label_NM[range(7), range(7)] += 1.0 - share
    torch.testing.assert_close(found, -(label_NM * logit_NM.log_softmax(1)).sum() / 7)


def test_candidates_hold_every_target_and_their_chances_are_those_of_the_draw(parts):
    _, _, _, target_N = parts
    teacher = distillation(parts, 0.5, candidates=6)
    target_N = teacher.trained_J[:3]
    seen_I = torch.zeros(20)
    torch.manual_seed(0)
    rounds = 3000
    counts_I = (torch.arange(20) % 4).double()
    for _ in range(rounds):
        drawn_N = torch.multinomial(counts_I, 3, replacement=True)
        item_M, log_chance_M = teacher.candidates(drawn_N)
        assert bool(torch.isin(drawn_N, item_M).all()) and torch.equal(item_M, item_M.unique())
        seen_I[item_M] += 1
    item_M, log_chance_M = teacher.candidates(target_N)
    torch.testing.assert_close(seen_I[item_M] / rounds, log_chance_M.exp(), atol=0.04, rtol=0)
