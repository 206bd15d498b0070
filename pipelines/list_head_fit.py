"""Fitting a net that scores short lists on validation lists, its weight chosen by lists that it did not learn from.

Training prefixes will not do: the model and the transitions have seen what followed them, so that on Amazon Toys the
dense NDCG@10 there is .44 and not .09, and a net learns to trust it. Validation targets are new to both. Every list is
scored by nets that learned from other folds; the head is all of them together.

Suffixes: Q = lists that hold their target, B = lists of a batch, K = candidates, F = features, M = members,
W = weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.list_head import ListHead, ListNet, keep_places
from recsys.pipelines.console import progress_bar

__all__ = ["FittedListHead", "TargetLists", "fit_list_head"]

_FOLDS, _MORE_FOLDS, _FEW_LISTS = 5, 10, 2000
"""Fewer lists are learned from in more folds, so that each net misses fewer of them."""
_MEMBERS, _HIDDEN = 3, 16
_EPOCHS = (8, 15)
"""Lengths of training that are tried; the one that explains the targets of unseen lists better stays."""
_RATE, _DECAY, _DROPOUT, _BATCH = 4e-3, 0.1, 0.3, 128
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
_STANDARD_ERRORS = 2.0
"""By which a gain must exceed 0, as for the weights of the hybrid retriever."""
_NEW_TARGETS = 20
"""Targets without training events below which nothing can be said of such items: a split may have held all out."""
_JUDGES = 5
"""Parts of the lists, each of which judges the weight that the others choose; with halves, a few hundred lists that
hold their target choose at random."""


@dataclass(frozen=True, slots=True)
class TargetLists:
    """Lists that hold their target; the others teach nothing and no order changes them."""

    feature_QKF: Tensor
    score_QK: Tensor
    """By which the candidates stand in their order, best first; -inf at padded places."""
    is_target_QK: Tensor
    num_requests: int
    """All that were looked at, those whose lists miss their target included."""
    names: tuple[str, ...]
    """Of the features."""
    is_new_QK: Tensor | None = None
    """[Q, K] bool, items without training events; None = none."""


@dataclass(frozen=True, slots=True)
class FittedListHead:
    """A head, and what it did on lists that its nets had not seen."""

    head: ListHead
    ndcg: float
    """NDCG@10, all requests counted, with the chosen weight."""
    start_ndcg: float
    """The same in the order that the lists came in."""


def fit_list_head(lists: TargetLists, *, judged: int, hears_new: bool = True, seed: int = 0) -> FittedListHead:
    """Fit a head by the listwise softmax over each list.

    Args:
        lists: at least one, of validation.
        judged: candidates of a list that are put in order to choose the weight; nets learn from all.
        hears_new: whether it may say something of items without training events.
        seed: of folds and nets.
    """
    mean_F = lists.feature_QKF.mean((0, 1))
    scale_F = lists.feature_QKF.std((0, 1)).clamp_min(1e-6)
    num_folds = _FOLDS if len(lists.score_QK) >= _FEW_LISTS else _MORE_FOLDS
    fold_Q = torch.from_numpy(np.random.default_rng(seed).permutation(len(lists.score_QK)) % num_folds)
    start = ListHead(
        names=lists.names, mean_F=mean_F, scale_F=scale_F, net=ListNet(len(lists.names), _HIDDEN, 1), weight=0.0
    )
    feature_QKF = start.standardised(lists.feature_QKF)
    with progress_bar("a net for lists", num_folds * sum(_EPOCHS), "epochs") as advance:
        tried = [_cross_fitted(feature_QKF, lists, fold_Q, epochs, seed, advance) for epochs in _EPOCHS]
    nets, added_QK = min(tried, key=lambda found: _nats(found[1], lists))
    start_Q = _gains(lists, added_QK, 0.0, judged)
    weight = _weight(lists, added_QK, judged)
    knows_new = True
    if lists.is_new_QK is not None and lists.is_new_QK.any():
        told = int((lists.is_new_QK & lists.is_target_QK).sum())
        knows_new = (
            hears_new
            and told >= _NEW_TARGETS
            and bool(
                _gains(lists, added_QK, weight, judged).sum()
                >= _gains(lists, added_QK, weight, judged, held=True).sum()
            )
        )
        if not knows_new:
            weight = _weight(lists, added_QK, judged, held=True)
    more_Q = _gains(lists, added_QK, weight, judged, held=not knows_new) - start_Q
    start_ndcg = float(start_Q.sum()) / lists.num_requests
    head = ListHead(
        names=lists.names, mean_F=mean_F, scale_F=scale_F, net=_joined(nets), weight=weight, knows_new=knows_new
    )
    return FittedListHead(head, start_ndcg + float(more_Q.sum()) / lists.num_requests, start_ndcg)


def _cross_fitted(
    feature_QKF: Tensor, lists: TargetLists, fold_Q: Tensor, epochs: int, seed: int, advance: Callable[[int], None]
) -> tuple[list[ListNet], Tensor]:
    """A net per fold, learned from the others, and [Q, K] what each adds to the lists of its own fold."""
    nets, added_QK = [], torch.zeros_like(lists.score_QK)
    for fold in range(int(fold_Q.max()) + 1):
        learns = (fold_Q != fold).nonzero().flatten()
        net = _trained(feature_QKF[learns], lists.score_QK[learns], lists.is_target_QK[learns], epochs, seed + fold)
        unseen = (fold_Q == fold).nonzero().flatten()
        with torch.inference_mode():
            added_QK[unseen] = net(feature_QKF[unseen]).mean(0)
        nets.append(net)
        advance(epochs)
    return nets, added_QK


def _trained(feature_QKF: Tensor, score_QK: Tensor, is_target_QK: Tensor, epochs: int, seed: int) -> ListNet:
    """Members trained on the listwise softmax of dense score and what they add (InfoNCE over the list)."""
    # E2Rank's RankNet term beside it, weight 2, took a third of the gain away on Amazon Toys.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ListNet(feature_QKF.shape[2], _HIDDEN, _MEMBERS).train()
        per_epoch = -(-len(feature_QKF) // _BATCH)
        optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * per_epoch + 1)
        for _ in range(epochs):
            for rows in torch.randperm(len(feature_QKF)).split(_BATCH):
                score_MBK = score_QK[rows] + net(feature_QKF[rows], _DROPOUT)
                target_B = is_target_QK[rows].float().argmax(1)
                nats_MB = F.cross_entropy(
                    score_MBK.flatten(0, 1), target_B.repeat(len(score_MBK)), reduction="none"
                ).view(len(score_MBK), -1)
                optimizer.zero_grad()
                nats_MB.mean(1).sum().backward()  # a member's gradient is its own, however many there are
                optimizer.step()
                schedule.step()
    return net.eval()


def _nats(added_QK: Tensor, lists: TargetLists) -> float:
    """Mean -log of the target's share of the list."""
    return float(F.cross_entropy(lists.score_QK + added_QK, lists.is_target_QK.float().argmax(1)))


def _gains(lists: TargetLists, added_QK: Tensor, weight: float, judged: int, *, held: bool = False) -> Tensor:
    """[Q] float64 NDCG@10 of the first candidates in their new order; ties count against the target.

    Args:
        held: items without training events keep their places.
    """
    cut = slice(0, judged)
    score_QK = (lists.score_QK + weight * added_QK)[:, cut]
    if held and lists.is_new_QK is not None:
        score_QK = keep_places(lists.score_QK[:, cut], score_QK, lists.is_new_QK[:, cut])
    is_target_QK = lists.is_target_QK[:, cut]
    own_Q1 = score_QK.masked_fill(~is_target_QK, -torch.inf).amax(1, keepdim=True)
    ahead_Q = (score_QK >= own_Q1).sum(1)
    return torch.where(is_target_QK.any(1) & (ahead_Q <= 10), 1.0 / torch.log2(ahead_Q + 1.0), 0.0).double()


def _weight(lists: TargetLists, added_QK: Tensor, judged: int, *, held: bool = False) -> float:
    """The weight whose gain less its standard error is largest; 0 where the gain of each fifth of the lists under the
    weight that the other four choose is within two standard errors."""
    more_WQ = torch.stack([_gains(lists, added_QK, weight, judged, held=held) for weight in _WEIGHTS])
    more_WQ = more_WQ - more_WQ[0]
    share = len(lists.score_QK) / lists.num_requests
    part_Q = torch.arange(more_WQ.shape[1]) % _JUDGES

    def chosen(rows_Q: Tensor) -> int:
        mean_W, error_W = _mean_and_error(more_WQ[:, rows_Q], share)
        return int((mean_W - error_W).argmax())

    more_Q = torch.zeros_like(more_WQ[0])
    for part in range(_JUDGES):
        more_Q[part_Q == part] = more_WQ[chosen(part_Q != part)][part_Q == part]
    mean_W, error_W = _mean_and_error(more_Q[None], share)
    adopted = float(mean_W) > _STANDARD_ERRORS * float(error_W)
    return _WEIGHTS[chosen(part_Q >= 0)] if adopted else 0.0


def _mean_and_error(more_WQ: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """[W] mean gain over requests and its standard error; lists without their target, not among the Q, gain nothing.

    Args:
        share: of the requests whose lists are among the Q.
    """
    mean_W = more_WQ.mean(1) * share
    variance_W = more_WQ.square().mean(1) * share - mean_W.square()
    return mean_W, (variance_W * share / more_WQ.shape[1]).sqrt()


def _joined(nets: list[ListNet]) -> ListNet:
    """One net with the members of all."""
    states = [net.state_dict() for net in nets]
    whole = ListNet(states[0]["linear_MF"].shape[1], _HIDDEN, _MEMBERS * len(nets))
    whole.load_state_dict({name: torch.cat([state[name] for state in states]) for name in states[0]})
    return whole.eval()
