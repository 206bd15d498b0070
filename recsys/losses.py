"""Losses as sums, with their counts beside them; the caller divides.

Suffixes: N = rows, D = width, I = items, A = actions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["action_loss", "full_softmax_loss_sum", "pairwise_loss", "sampled_softmax_loss_sum"]

_MAX_LOGITS = 1 << 25
"""Logits held at once by the full softmax (128 MiB in float32); more rows are recomputed in the backward pass."""


def full_softmax_loss_sum(query_ND: Tensor, vectors_ID: Tensor, target_N: Tensor) -> Tensor:
    """Σ −log softmax(query · vectors)[target], over chunks of rows so that memory stays bounded."""
    chunk = max(1, _MAX_LOGITS // max(1, len(vectors_ID)))
    if len(query_ND) <= chunk:
        return _softmax_sum(query_ND, vectors_ID, target_N)
    parts = [
        checkpoint(_softmax_sum, query, vectors_ID, target, use_reentrant=False)
        for query, target in zip(query_ND.split(chunk), target_N.split(chunk), strict=True)
    ]
    return torch.stack(parts).sum()


def _softmax_sum(query_ND: Tensor, vectors_ID: Tensor, target_N: Tensor) -> Tensor:
    return F.cross_entropy(query_ND @ vectors_ID.T, target_N, reduction="sum")


def sampled_softmax_loss_sum(
    query_ND: Tensor,
    target_vectors_ND: Tensor,
    target_N: Tensor,
    random_vectors_MD: Tensor,
    random_M: Tensor,
    log_expected_target_N: Tensor,
    log_expected_random_M: Tensor,
) -> Tensor:
    """Softmax over in-batch targets and uniform random negatives with the logQ correction (Yi et al. 2019).

    Args:
        target_vectors_ND: [N, D] vectors of the targets, which are also every other row's in-batch negatives.
        random_vectors_MD, random_M: uniform random negatives, shared by the rows.
        log_expected_…: ln of how often the mixed sampler is expected to draw the item in a step.
    """
    logits_NC = torch.cat([query_ND @ target_vectors_ND.T, query_ND @ random_vectors_MD.T], 1)
    item_C = torch.cat([target_N, random_M])
    logits_NC = logits_NC - torch.cat([log_expected_target_N, log_expected_random_M])
    own = torch.eye(len(target_N), len(item_C), dtype=torch.bool, device=item_C.device)
    hit = (item_C[None, :] == target_N[:, None]) & ~own
    logits_NC = logits_NC.masked_fill(hit, float("-inf"))
    return F.cross_entropy(logits_NC, torch.arange(len(target_N), device=item_C.device), reduction="sum")


def action_loss(logits_NA: Tensor, yes_NA: Tensor, known_NA: Tensor) -> Tensor:
    """Mean over actions of the mean binary cross-entropy over the rows that know the action; 0 without such rows."""
    loss_NA = F.binary_cross_entropy_with_logits(logits_NA, yes_NA, reduction="none") * known_NA
    count_A = known_NA.sum(0)
    per_action_A = loss_NA.sum(0) / count_A.clamp_min(1)
    return per_action_A.sum()


def pairwise_loss(logits_NA: Tensor, yes_NA: Tensor, known_NA: Tensor, slate_N: Tensor) -> Tensor:
    """Mean softplus(s_no − s_yes) over pairs of one slate with different known labels, over all actions."""
    same_NN = slate_N[:, None] == slate_N[None, :]
    first_P, second_P = same_NN.nonzero(as_tuple=True)
    better_PA = yes_NA[first_P] * (known_NA[second_P] - yes_NA[second_P])
    loss_PA = F.softplus(logits_NA[second_P] - logits_NA[first_P]) * better_PA
    return loss_PA.sum() / better_PA.sum().clamp_min(1)
