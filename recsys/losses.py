"""Losses as sums, with their counts beside them; the caller divides.

Suffixes: N = rows, D = width, I = items, A = actions, K = items of a label.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["action_loss", "full_softmax_loss_sum", "pairwise_loss", "sampled_softmax_loss_sum"]

_MAX_LOGITS = 3 << 19
"""Logits held at once by the full softmax on a CPU: 6 MiB in float32, about what its caches hold."""
_MAX_LOGITS_ELSEWHERE = 1 << 25
"""The same on any other device: 128 MiB."""


class _FullSoftmax(torch.autograd.Function):
    """Loss and gradients in one go over chunks of rows, so that no logits wait for the backward pass.

    Factors and results of the matrix products have the type ``factors``; the softmax and what is added up over chunks
    are float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        vectors_ID: Tensor,
        label_NK: Tensor,
        weight_NK: Tensor,
        smoothing: float,
        factors: torch.dtype,
    ) -> Tensor:
        kind, num_items = query_ND.device.type, len(vectors_ID)
        chunk = max(1, (_MAX_LOGITS if kind == "cpu" else _MAX_LOGITS_ELSEWHERE) // max(1, num_items))
        with torch.autocast(kind, enabled=False):
            vectors, weight_NK = vectors_ID.to(factors), weight_NK.float() * (1.0 - smoothing)
            loss = query_ND.new_zeros((), dtype=torch.float32)
            grad_ID = torch.zeros_like(vectors_ID, dtype=torch.float32)
            grads: list[Tensor] = []
            for query, label, weight in zip(
                query_ND.to(factors).split(chunk), label_NK.split(chunk), weight_NK.split(chunk), strict=True
            ):
                logits = (query @ vectors.T).float()
                at_label, most = logits.gather(1, label), logits.amax(1)
                mean = logits.mean(1) if smoothing else None
                p = torch.softmax(logits, -1, out=logits)
                log_sum = most - p.amax(1).log()  # of exp(logits): one pass over p instead of another exponential
                loss = loss - ((at_label - log_sum[:, None]) * weight).sum()
                if mean is not None:
                    loss = loss - smoothing * (mean - log_sum).sum()
                residual = p.scatter_add_(1, label, -weight)  # d loss / d logits = p − (1 − ε) w − ε / I
                if smoothing:
                    residual -= smoothing / num_items
                residual = residual.to(factors)
                grads.append(residual @ vectors)
                if factors == grad_ID.dtype:
                    grad_ID.addmm_(residual.T, query)
                else:
                    grad_ID += residual.T @ query
        grad_ND = torch.cat(grads).to(query_ND.dtype) if grads else torch.zeros_like(query_ND)
        ctx.save_for_backward(grad_ND, grad_ID.to(vectors_ID.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_ND, grad_ID = ctx.saved_tensors
        return grad_ND * grad.to(grad_ND.dtype), grad_ID * grad.to(grad_ID.dtype), None, None, None, None


def full_softmax_loss_sum(
    query_ND: Tensor,
    vectors_ID: Tensor,
    label_NK: Tensor,
    weight_NK: Tensor | None = None,
    label_smoothing: float = 0.0,
    factors: torch.dtype | None = None,
) -> Tensor:
    """Σ −label · log softmax(query · vectors) in float32; memory stays bounded whatever the number of rows.

    Args:
        label_NK: [N] targets, or [N, K] items that share a row's label.
        weight_NK: their shares, which add up to 1 in each row; an item may be named twice.
        label_smoothing: ε of the label (1 − ε) label + ε / I (arXiv 1512.00567).
        factors: type of the factors and results of the three matrix products; None = what autocast says, else that of
            the query.
    """
    if weight_NK is None:
        label_NK = label_NK[:, None]
        weight_NK = torch.ones_like(label_NK, dtype=torch.float32)
    if factors is None:
        kind = query_ND.device.type
        factors = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query_ND.dtype
    loss: Tensor = _FullSoftmax.apply(query_ND, vectors_ID, label_NK, weight_NK, label_smoothing, factors)
    return loss


def sampled_softmax_loss_sum(
    query_ND: Tensor,
    target_vectors_ND: Tensor,
    target_N: Tensor,
    negative_vectors_MD: Tensor,
    negative_M: Tensor,
    log_expected_target_N: Tensor,
    log_expected_negative_M: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax over each row's target and shared sampled negatives, with the logQ correction (Yi et al. 2019).

    Args:
        target_vectors_ND: [N, D] vectors of the targets.
        negative_vectors_MD, negative_M: negatives of every row; a row's own target among them is left out.
        log_expected_…: ln of how often the sampler is expected to draw the item in a step.
        label_smoothing: share of the label that is spread evenly over the target and the row's negatives.
    """
    own_N = (query_ND * target_vectors_ND).sum(-1) - log_expected_target_N
    # One more component takes the target's own logit off every row of logits; its own column is then a constant 0.
    query_NE = torch.cat([query_ND, own_N[:, None]], 1)
    negative_ME = torch.cat([negative_vectors_MD, -torch.ones_like(negative_vectors_MD[:, :1])], 1)
    logits_NC = torch.addmm(F.pad(-log_expected_negative_M, (1, 0)), query_NE, F.pad(negative_ME, (0, 0, 1, 0)).T)
    hit_NC = F.pad(negative_M, (1, 0), value=-1) == target_N[:, None]
    logits_NC = logits_NC.masked_fill_(hit_NC, float("-inf"))
    loss = F.cross_entropy(logits_NC, torch.zeros_like(target_N), reduction="sum")
    if not label_smoothing:
        return loss
    log_p_NC = logits_NC.log_softmax(1).masked_fill(hit_NC, 0.0)
    even = (log_p_NC.sum(1) / (~hit_NC).sum(1)).sum()
    return (1.0 - label_smoothing) * loss - label_smoothing * even


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
