"""Losses that train a reranker: of pairs, of written orders, of sampled orders, and against a reference model.

Suffixes: B = lists, C = candidates of the longest list, S = sampled orders, T = tokens of an answer, V = vocabulary.
Every loss is one number per list; who trains divides by the number of lists. Places without a candidate are False in
``mask_BC``, and nothing there changes a loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "first_loss",
    "importance_weighted_loss",
    "importance_weights",
    "irpo_loss",
    "leave_one_out",
    "ndcg_of_orders",
    "pg_rank_loss",
    "plackett_luce_log_prob",
    "plackett_luce_orders",
    "weighted_ranknet_loss",
]

_ABSENT = -1e9
"""Score of a place without a candidate: its share of a softmax is 0, and unlike -inf it leaves gradients finite."""


def weighted_ranknet_loss(score_BC: Tensor, rank_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """RankNet over all pairs, pairs near the top counting more (FIRST, arXiv 2406.15657).

    The sum over pairs with r_i < r_j of log(1 + exp(s_j - s_i)) / (r_i + r_j).

        >>> score, rank = torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 2]])
        >>> weighted_ranknet_loss(score, rank, rank > 0)  # log(1 + exp(-1)) / 3
        tensor([0.1044])

    Args:
        score_BC: [B, C] scores, higher is better.
        rank_BC: [B, C] wanted places from 1, any number type; of equal ones neither is to stand first.
        mask_BC: [B, C] bool.

    Returns:
        [B] in nats.
    """
    rank_BC = rank_BC.to(score_BC.dtype)
    ahead_BCC = (rank_BC[:, :, None] < rank_BC[:, None, :]) & mask_BC[:, :, None] & mask_BC[:, None, :]
    weight_BCC = torch.where(ahead_BCC, 1.0 / (rank_BC[:, :, None] + rank_BC[:, None, :]).clamp(min=1.0), 0.0)
    safe_BC = score_BC.masked_fill(~mask_BC, 0.0)
    return (weight_BCC * F.softplus(safe_BC[:, None, :] - safe_BC[:, :, None])).sum(dim=(1, 2))


def first_loss(
    score_BC: Tensor, rank_BC: Tensor, mask_BC: Tensor, lm_nats_B: Tensor, *, rank_weight: float = 1.0
) -> Tensor:
    """FIRST's joint loss: that of the language model, plus the weighted RankNet loss.

    The first keeps the answer what it should be, an identifier; the second puts all identifiers in order.

        >>> score, rank = torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 2]])
        >>> first_loss(score, rank, rank > 0, torch.tensor([0.5]), rank_weight=2.0)  # 0.5 + 2 * 0.1044
        tensor([0.7088])

    Args:
        score_BC: [B, C] logits of the candidates' identifiers as the first token of the answer.
        rank_BC: [B, C] wanted places from 1.
        mask_BC: [B, C] bool.
        lm_nats_B: [B] cross entropy of the right answer.
        rank_weight: of the ranking loss; the paper's lambda.
    """
    return lm_nats_B + rank_weight * weighted_ranknet_loss(score_BC, rank_BC, mask_BC)


def importance_weights(rank_BT: Tensor, *, separator_weight: float = 1.0) -> Tensor:
    """Weights of the tokens of a written order (FullRank, arXiv 2412.14574): 1 + 1 / log2(rank + 1).

        >>> importance_weights(torch.tensor([[1, 0, 3, -1]]), separator_weight=0.5)  # 1 + 1/1, separator, 1 + 1/2, none
        tensor([[2.0000, 0.5000, 1.5000, 0.0000]])

    Args:
        rank_BT: [B, T] place from 1 of the item that a token names; 0 = a separator; below 0 = not part of the answer.
        separator_weight: of separators, at most 1.
    """
    place_BT = rank_BT.clamp(min=1).float()
    weight_BT = torch.where(rank_BT > 0, 1.0 + 1.0 / torch.log2(place_BT + 1.0), separator_weight)
    return torch.where(rank_BT >= 0, weight_BT, 0.0)


def importance_weighted_loss(logit_BTV: Tensor, token_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """Weighted cross entropy of a written order, divided by its number of tokens.

        >>> logit = torch.zeros(1, 2, 4)  # log 4 for every token; weights 2 and 1: 3 * log 4 / 2
        >>> importance_weighted_loss(logit, torch.tensor([[0, 3]]), torch.tensor([[2.0, 1.0]]))
        tensor([2.0794])

    Args:
        logit_BTV: [B, T, V] what the model says of each token of the answer.
        token_BT: [B, T] int64 the answer; anything where the weight is 0.
        weight_BT: [B, T] of :func:`importance_weights`.

    Returns:
        [B] in nats.
    """
    nats_BT = F.cross_entropy(logit_BTV.transpose(1, 2), token_BT, reduction="none")
    num_B = (weight_BT > 0).sum(dim=1).clamp(min=1)
    return (nats_BT * weight_BT).sum(dim=1) / num_B


def plackett_luce_log_prob(score_BC: Tensor, order_BSC: Tensor, mask_BC: Tensor) -> Tensor:
    """Log-probability of orders when items are drawn one after the other, each by a softmax over those left.

    The sum over places k of s_{r_k} - logsumexp over l >= k of s_{r_l}.

        >>> score, order = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[[2, 0, 1]]])
        >>> plackett_luce_log_prob(score, order, score == 0).exp()  # one of six orders
        tensor([[0.1667]])

    Args:
        score_BC: [B, C].
        order_BSC: [B, S, C] int64 places of the list, best first; places without a candidate at the end.
        mask_BC: [B, C] bool.

    Returns:
        [B, S].
    """
    absent_BC = score_BC.masked_fill(~mask_BC, _ABSENT)
    num_orders = order_BSC.shape[1]
    drawn_BSC = absent_BC[:, None].expand(-1, num_orders, -1).gather(2, order_BSC)
    there_BSC = mask_BC[:, None].expand(-1, num_orders, -1).gather(2, order_BSC)
    left_BSC = drawn_BSC.flip(2).logcumsumexp(2).flip(2)
    return torch.where(there_BSC, drawn_BSC - left_BSC, 0.0).sum(dim=2)


def plackett_luce_orders(
    score_BC: Tensor, mask_BC: Tensor, num_orders: int, generator: torch.Generator | None = None
) -> Tensor:
    """[B, S, C] int64 orders drawn from the Plackett-Luce model: Gumbel noise added to the scores, then sorted.

    Args:
        score_BC: [B, C].
        mask_BC: [B, C] bool; places without a candidate come last.
        num_orders: S.
        generator: of the noise, on the device of the scores.
    """
    size = (len(score_BC), num_orders, score_BC.shape[1])
    uniform = torch.rand(size, generator=generator, device=score_BC.device, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    gumbel_BSC = -torch.log((-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny))
    noisy_BSC = (score_BC.detach().double()[:, None] + gumbel_BSC).masked_fill(~mask_BC[:, None], -torch.inf)
    return noisy_BSC.argsort(dim=2, descending=True, stable=True)


def ndcg_of_orders(gain_BC: Tensor, order_BSC: Tensor, k: int) -> Tensor:
    """[B, S] NDCG of the first k places of orders; 0 for a list without any gain.

        >>> gain, orders = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0, 1], [1, 0]]])
        >>> ndcg_of_orders(gain, orders, 10)  # 1 / log2(2), 1 / log2(3)
        tensor([[1.0000, 0.6309]])

    Args:
        gain_BC: [B, C] at least 0; 0 where there is no candidate.
        order_BSC: [B, S, C] int64.
        k: places that count.
    """
    place_C = torch.arange(gain_BC.shape[1], device=gain_BC.device)
    discount_C = torch.where(place_C < k, 1.0 / torch.log2(place_C + 2.0), 0.0).to(gain_BC.dtype)
    gained_BSC = gain_BC[:, None].expand(-1, order_BSC.shape[1], -1).gather(2, order_BSC)
    best_B = (gain_BC.sort(dim=1, descending=True).values * discount_C).sum(dim=1)
    found_BS = (gained_BSC * discount_C).sum(dim=2)
    return torch.where(best_B[:, None] > 0, found_BS / best_B[:, None].clamp(min=1e-12), 0.0)


def leave_one_out(reward_BS: Tensor) -> Tensor:
    """[B, S] each reward less the mean of the others of its list: a baseline that leaves the gradient unbiased.

    >>> leave_one_out(torch.tensor([[1.0, 0.5, 0.0]]))  # 1 - 1/4, 1/2 - 1/2, 0 - 3/4
    tensor([[ 0.7500,  0.0000, -0.7500]])
    """
    num = reward_BS.shape[1]
    if num < 2:
        raise ValueError(f"a reward is compared with the others of its list, so {num} sample is too few; draw 2")
    return (reward_BS - reward_BS.mean(dim=1, keepdim=True)) * (num / (num - 1))


def pg_rank_loss(
    score_BC: Tensor,
    gain_BC: Tensor,
    mask_BC: Tensor,
    *,
    num_samples: int = 16,
    k: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Policy gradient of the expected NDCG of a Plackett-Luce policy (Neural PG-RANK, arXiv 2310.04407).

    The value is no loss to look at: its gradient is an unbiased estimate of minus the gradient of the expected NDCG@k,
    the mean over samples of (NDCG - mean NDCG of the other samples) times the gradient of the order's log-probability.

    Args:
        score_BC: [B, C] of the policy.
        gain_BC: [B, C] at least 0; 0 where there is no candidate.
        mask_BC: [B, C] bool.
        num_samples: orders drawn for each list, at least 2.
        k: places that count.
        generator: of the draws.

    Returns:
        [B].
    """
    order_BSC = plackett_luce_orders(score_BC, mask_BC, num_samples, generator)
    with torch.no_grad():
        advantage_BS = leave_one_out(ndcg_of_orders(gain_BC.to(score_BC.dtype), order_BSC, k))
    return -(advantage_BS * plackett_luce_log_prob(score_BC, order_BSC, mask_BC)).mean(dim=1)


def irpo_loss(
    log_prob_BC: Tensor, reference_BC: Tensor, gain_BC: Tensor, mask_BC: Tensor, *, beta: float = 1.0
) -> Tensor:
    """Preference of chosen items over all others of their list, relative to a reference (IRPO, arXiv 2504.15477).

    With s_i = beta (log p(i) - log p_ref(i)): the sum of -w_i log sigmoid(-log of the sum over j != i of
    exp(s_j - s_i)), w_i = gain of i over log2 of 1 + its place in the list. The sigmoid is the softmax of s at i.

        >>> same, chosen = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
        >>> irpo_loss(same, same, chosen, same == 0)  # log 2 / log2(3)
        tensor([0.4373])

    Args:
        log_prob_BC: [B, C] log-probability of each candidate's identifier; adding a number to a whole row changes
            nothing, so that logits do as well.
        reference_BC: [B, C] the same of the model as it was before training; no gradient reaches it.
        gain_BC: [B, C] at least 0; candidates stand in the order in which they were shown.
        mask_BC: [B, C] bool.
        beta: how far the model may leave the reference; larger = less far.

    Returns:
        [B] in nats.
    """
    shift_BC = beta * (log_prob_BC - reference_BC.detach())
    log_share_BC = shift_BC.masked_fill(~mask_BC, _ABSENT).log_softmax(dim=1)
    place_C = torch.arange(gain_BC.shape[1], device=gain_BC.device)
    weight_BC = torch.where(mask_BC, gain_BC / torch.log2(place_C + 2.0), 0.0).to(log_share_BC.dtype)
    return -(weight_BC * torch.where(mask_BC, log_share_BC, 0.0)).sum(dim=1)
