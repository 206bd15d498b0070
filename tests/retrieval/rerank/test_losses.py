"""Losses of rerankers: gradients, worked figures, masks, and the policy gradient against enumeration."""

from itertools import permutations
from math import log, log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rerank.losses import (
    first_loss,
    importance_weighted_loss,
    importance_weights,
    irpo_loss,
    leave_one_out,
    ndcg_of_orders,
    pg_rank_loss,
    plackett_luce_log_prob,
    plackett_luce_orders,
    weighted_ranknet_loss,
)

MASK = torch.tensor([[True, True, True, True], [True, True, True, False]])
RANK = torch.tensor([[2, 1, 4, 3], [3, 1, 2, 9]])
GAIN = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)


def scores(seed=0, rows=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator, dtype=torch.float64).requires_grad_()


def pg(score, seed=7):
    return pg_rank_loss(score, GAIN, MASK, num_samples=4, generator=torch.Generator().manual_seed(seed))


LOSSES = {
    "ranknet": lambda score: weighted_ranknet_loss(score, RANK, MASK),
    "first": lambda score: first_loss(score, RANK, MASK, (score**2).mean(1), rank_weight=3.0),
    "irpo": lambda score: irpo_loss(score, scores(5).detach(), GAIN, MASK, beta=0.7),
    "plackett-luce": lambda score: plackett_luce_log_prob(
        score, torch.tensor([[[3, 1, 0, 2]], [[2, 0, 1, 3]]]), MASK
    ).sum(1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name):
    assert torch.autograd.gradcheck(LOSSES[name], scores())


def test_gradient_of_the_weighted_answer():
    logit = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    token, rank = torch.tensor([[0, 4, 2], [3, 0, 0]]), torch.tensor([[1, 0, 2], [1, 0, -1]])
    weight = importance_weights(rank, separator_weight=0.5).double()
    assert torch.autograd.gradcheck(lambda x: importance_weighted_loss(x, token, weight), logit)
    nats = -logit.detach().log_softmax(-1)
    by_hand = (2 * nats[1, 0, 3] + 0.5 * nats[1, 1, 0]) / 2
    assert importance_weighted_loss(logit.detach(), token, weight)[1] == pytest.approx(float(by_hand))


@pytest.mark.parametrize("name", ["ranknet", "irpo", "plackett-luce"])
def test_places_without_a_candidate_change_nothing(name):
    other = scores().detach().clone()
    other[1, 3] = 50.0
    plain = scores()
    torch.testing.assert_close(LOSSES[name](other), LOSSES[name](plain))
    LOSSES[name](plain).sum().backward()
    assert plain.grad[1, 3] == 0 and plain.grad[1, :3].abs().min() > 0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), rise=st.floats(0.05, 3.0), place=st.integers(0, 3))
def test_a_higher_score_of_the_best_item_lowers_the_loss(seed, rise, place):
    score = scores(seed, rows=1).detach()
    raised = score.clone()
    raised[0, place] += rise
    mask = torch.ones(1, 4, dtype=torch.bool)
    gain = torch.zeros(1, 4, dtype=torch.float64)
    gain[0, place] = 1.0
    rank = torch.where(gain > 0, 1, 2)
    assert weighted_ranknet_loss(raised, rank, mask) < weighted_ranknet_loss(score, rank, mask)
    reference = torch.zeros_like(score)
    assert irpo_loss(raised, reference, gain, mask) < irpo_loss(score, reference, gain, mask)
    best_first = torch.tensor([[[place, *(other for other in range(4) if other != place)]]])
    assert plackett_luce_log_prob(raised, best_first, mask) > plackett_luce_log_prob(score, best_first, mask)


def test_ranknet_worked_by_hand():
    score, rank = torch.zeros(1, 3), torch.tensor([[1, 2, 2]])
    expected = 2 * log(2) / 3  # two pairs (1, 2); the pair of equal ranks is none
    assert weighted_ranknet_loss(score, rank, rank > 0) == pytest.approx(expected)


def test_irpo_weighs_by_the_place_in_the_list_and_ignores_what_both_models_say():
    score = torch.randn(1, 4, generator=torch.Generator().manual_seed(2))
    mask, gain = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    assert irpo_loss(score, score, gain, mask) == pytest.approx(log(4) / log2(4))
    torch.testing.assert_close(
        irpo_loss(score + 3, score * 2, gain, mask), irpo_loss(score, score * 2, gain, mask)
    )  # a number added to a row


def orders_of_three():
    return torch.tensor([list(permutations(range(3)))])


def test_plackett_luce_probabilities_of_all_orders_add_up_to_one():
    score, mask = torch.tensor([[0.3, -1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
    prob = plackett_luce_log_prob(score, orders_of_three(), mask).exp()
    assert prob.sum() == pytest.approx(1.0)
    weight = score.exp()[0]
    first = weight[2] / weight.sum() * weight[0] / (weight[0] + weight[1])
    assert prob[0, orders_of_three()[0].tolist().index([2, 0, 1])] == pytest.approx(float(first))


def test_sampled_orders_come_as_often_as_their_probability_says():
    score, mask = torch.tensor([[0.3, -1.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    prob = plackett_luce_log_prob(score, orders_of_three(), mask).exp()[0]
    drawn = plackett_luce_orders(score, mask, 20_000, torch.Generator().manual_seed(3))[0]
    share = (drawn[:, None] == orders_of_three()[0]).all(2).double().mean(0)
    error = (prob * (1 - prob) / 20_000).sqrt()
    assert ((share - prob).abs() < 4 * error).all()


def test_absent_places_are_sampled_last():
    drawn = plackett_luce_orders(scores().detach(), MASK, 50, torch.Generator().manual_seed(0))
    assert (drawn[1, :, 3] == 3).all() and not (drawn[0, :, 3] == 3).all()


def test_policy_gradient_is_unbiased_by_enumeration():
    score = torch.tensor([[0.4, -0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    gain, mask = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    reward = ndcg_of_orders(gain, orders_of_three(), 2)
    expected = (plackett_luce_log_prob(score, orders_of_three(), mask).exp() * reward).sum()
    (exact,) = torch.autograd.grad(expected, score)
    many = 40_000
    copies = score.detach().expand(many, 3).clone().requires_grad_()
    loss = pg_rank_loss(
        copies,
        gain.expand(many, 3),
        mask.expand(many, 3),
        num_samples=2,
        k=2,
        generator=torch.Generator().manual_seed(1),
    )
    (estimate,) = torch.autograd.grad(loss.sum(), copies)
    error = estimate.std(0) / many**0.5
    assert ((-estimate.mean(0) - exact[0]).abs() < 4 * error).all()
    assert exact.abs().max() > 20 * error.max()  # far from zero: the comparison above can fail


def test_the_policy_gradient_is_of_what_an_order_gains_over_the_others():
    """Where every order is worth the same the baseline takes all of it: no gradient, not one of mean 0."""
    score = scores(rows=1)
    mask, gain = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4, dtype=torch.float64)
    loss = pg_rank_loss(score, gain, mask, num_samples=3, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss.sum(), score)
    assert gradient.abs().max() < 1e-12


def test_rewards_of_equal_orders_move_nothing():
    assert (leave_one_out(torch.full((2, 3), 0.4)).abs() < 1e-7).all()
    with pytest.raises(ValueError, match="draw 2"):
        leave_one_out(torch.ones(2, 1))
    assert ndcg_of_orders(torch.zeros(1, 3), orders_of_three(), 10).abs().sum() == 0
    loss = pg(scores())
    assert torch.equal(loss, pg(scores())) and not torch.equal(loss, pg(scores(), seed=8))
