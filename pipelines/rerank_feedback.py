"""Fitting the head of embedding feedback on validation requests, its weight chosen by lists that it did not learn from.

Training prefixes will not do: the model and the transitions have seen what followed them, so that on Amazon Toys the
dense NDCG@10 there is .44 and not .09, and a head learns to trust it. Validation targets are new to both. Every list is
scored by nets that learned from other folds; the head is all of them together.

Suffixes: Q = lists that hold their target, B = requests of a batch, K = candidates, F = features, M = members.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Requests
from recsys.pipelines.item_text_vectors import encoded_texts
from recsys.pipelines.recipe import validation_requests
from recsys.pipelines.request_tensors import exclusions, request_tensors
from recsys.retrieval.rerank.feedback_features import FeedbackFeatures
from recsys.retrieval.rerank.feedback_head import FeedbackHead, FeedbackNet

__all__ = ["FittedFeedback", "fit_feedback"]

_LEARNED, _JUDGED = 50, 20
"""Candidates of a list that nets learn from, and those that are put in order to choose the weight."""
_FOLDS, _MORE_FOLDS, _FEW_LISTS = 5, 10, 2000
"""Fewer lists are learned from in more folds, so that each net misses fewer of them."""
_MEMBERS, _HIDDEN = 3, 16
_EPOCHS = (8, 15)
"""Lengths of training that are tried; the one that explains the targets of unseen lists better stays."""
_RATE, _DECAY, _DROPOUT, _BATCH = 4e-3, 0.1, 0.3, 128
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
_STANDARD_ERRORS = 2.0
"""By which a gain must exceed 0, as for the weights of the hybrid retriever."""
_JUDGES = 5
"""Parts of the lists, each of which judges the weight that the others choose; with halves, a few hundred lists that
hold their target choose at random."""
_LEAST = 50
"""Lists that hold their target without which nothing is fitted."""


@dataclass(frozen=True, slots=True)
class FittedFeedback:
    """The head, and what it did on validation lists that its nets had not seen."""

    head: FeedbackHead
    ndcg: float
    """NDCG@10 of the first 20, all requests counted, with the chosen weight."""
    dense_ndcg: float
    """The same in the order of ``dense``."""
    num_requests: int
    num_lists: int
    """Of these, requests whose target is among the first 50: what the head learned from."""
    seconds: float


@dataclass(frozen=True, slots=True)
class _Lists:
    feature_QKF: Tensor
    score_QK: Tensor
    is_target_QK: Tensor
    num_requests: int
    names: tuple[str, ...]


def fit_feedback(
    bundle: Bundle, dataset: Dataset, *, text_encoder: Path | None = None, num_users: int | None = None, seed: int = 0
) -> FittedFeedback:
    """Fit a head for a bundle.

    Args:
        bundle: nothing of it changes.
        dataset: that it was made from; its validation targets are what the head learns.
        text_encoder: folder of a sentence-transformers model; its vectors of the item texts become one more space, and
            are stored with the head. None = the bundle's own spaces.
        num_users: validation requests that are looked at, drawn with the seed; None = all, at most 20,000.
        seed: of the draw, the folds and the nets.

    Raises:
        InputError: another dataset, an encoder that cannot be used, or too few lists that hold their target.
    """
    start = time.monotonic()
    bundle.check_data(dataset.manifest.data_hash, dataset.path)
    text_IV = None
    if text_encoder is not None:
        # Rounded as they are stored, so that a loaded head reads what this one learned from.
        text_IV = torch.from_numpy(encoded_texts(dataset, text_encoder)).half().float()
    requests = validation_requests(dataset)
    if num_users is not None and len(requests) > num_users:
        picked = np.random.default_rng(seed).choice(len(requests), num_users, replace=False)
        requests = requests.rows(np.sort(picked))  # which are in the order of their lengths
    lists = _lists(bundle, dataset, requests, FeedbackFeatures(bundle, training_only=True, text_IV=text_IV))
    num_lists = len(lists.score_QK)
    if num_lists < _LEAST:
        raise InputError(
            f"{dataset.path}: {num_lists} of {lists.num_requests} validation lists hold their target, and a feedback "
            f"head needs {_LEAST} to learn from; use embedding feedback without a head"
        )
    mean_F = lists.feature_QKF.mean((0, 1))
    scale_F = lists.feature_QKF.std((0, 1)).clamp_min(1e-6)
    num_folds = _FOLDS if num_lists >= _FEW_LISTS else _MORE_FOLDS
    fold_Q = torch.from_numpy(np.random.default_rng(seed).permutation(num_lists) % num_folds)
    head = FeedbackHead(
        names=lists.names, mean_F=mean_F, scale_F=scale_F, net=FeedbackNet(len(lists.names), _HIDDEN, 1),
        weight=0.0, model_hash=bundle.model_hash, text_IV=text_IV,
    )  # fmt: skip
    feature_QKF = head.standardised(lists.feature_QKF)
    tried = [_cross_fitted(feature_QKF, lists, fold_Q, epochs, seed) for epochs in _EPOCHS]
    nets, added_QK = min(tried, key=lambda found: _nats(found[1], lists))
    dense_Q = _gains(lists, added_QK, 0.0)
    weight = _weight(lists, added_QK)
    ndcg_Q = _gains(lists, added_QK, weight)
    asked = lists.num_requests
    gain, dense_ndcg = float((ndcg_Q - dense_Q).sum()) / asked, float(dense_Q.sum()) / asked
    report = {
        "dense_ndcg@10": dense_ndcg, "ndcg@10": dense_ndcg + gain, "num_requests": asked, "num_lists": num_lists,
        "text_encoder": None if text_encoder is None else text_encoder.name, "data_hash": bundle.data_hash,
    }  # fmt: skip
    whole = FeedbackHead(
        names=head.names, mean_F=mean_F, scale_F=scale_F, net=_joined(nets), weight=weight,
        model_hash=head.model_hash, text_IV=text_IV, report=report,
    )  # fmt: skip
    return FittedFeedback(whole, dense_ndcg + gain, dense_ndcg, asked, num_lists, time.monotonic() - start)


@torch.inference_mode()
def _lists(bundle: Bundle, dataset: Dataset, requests: Requests, features: FeedbackFeatures) -> _Lists:
    """Features of the validation lists that hold their target; the others teach nothing and no order changes them."""
    num_candidates = min(_LEARNED, dataset.num_items)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for low in range(0, len(requests), _BATCH):
        part = requests.rows(np.arange(low, min(low + _BATCH, len(requests))))
        histories, at_B, surface_B, target_B = request_tensors(dataset, part, bundle.vectors.device)
        states = bundle.model.encode(histories, keep_cache=False, user_BK=dataset.user_rows(part.user))
        exclude_BE = exclusions(histories).to(target_B.device)
        hits = features.dense.search(states, num_candidates, at_B=at_B, surface_B=surface_B, exclude_QE=exclude_BE)
        hit_B = (hits.ids_QK == target_B[:, None]).any(1)
        rows = hit_B.nonzero().flatten()
        if not len(rows):
            continue
        item_BK = hits.ids_QK[rows]
        user_BU = dataset.user_rows(part.user[rows.cpu().numpy()])
        found = features([histories[row] for row in rows.tolist()], item_BK, at_B[rows], surface_B[rows], user_BU)
        parts.append((found.feature_BKF.cpu(), found.score_BK.cpu(), (item_BK == target_B[rows, None]).cpu()))
    if not parts:
        nothing = torch.zeros(0, num_candidates)
        return _Lists(nothing[..., None], nothing, nothing.bool(), len(requests), features.names)
    feature_QKF, score_QK, is_target_QK = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Lists(feature_QKF, score_QK, is_target_QK, len(requests), features.names)


def _cross_fitted(
    feature_QKF: Tensor, lists: _Lists, fold_Q: Tensor, epochs: int, seed: int
) -> tuple[list[FeedbackNet], Tensor]:
    """A net per fold, learned from the others, and [Q, K] what each adds to the lists of its own fold."""
    nets, added_QK = [], torch.zeros_like(lists.score_QK)
    for fold in range(int(fold_Q.max()) + 1):
        learns = (fold_Q != fold).nonzero().flatten()
        net = _trained(feature_QKF[learns], lists.score_QK[learns], lists.is_target_QK[learns], epochs, seed + fold)
        unseen = (fold_Q == fold).nonzero().flatten()
        with torch.inference_mode():
            added_QK[unseen] = net(feature_QKF[unseen]).mean(0)
        nets.append(net)
    return nets, added_QK


def _trained(feature_QKF: Tensor, score_QK: Tensor, is_target_QK: Tensor, epochs: int, seed: int) -> FeedbackNet:
    """Members trained on the listwise softmax of dense score and what they add (InfoNCE over the list)."""
    # E2Rank's RankNet term beside it, weight 2, took a third of the gain away on Amazon Toys.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = FeedbackNet(feature_QKF.shape[2], _HIDDEN, _MEMBERS).train()
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


def _nats(added_QK: Tensor, lists: _Lists) -> float:
    """Mean -log of the target's share of the list."""
    return float(F.cross_entropy(lists.score_QK + added_QK, lists.is_target_QK.float().argmax(1)))


def _gains(lists: _Lists, added_QK: Tensor, weight: float) -> Tensor:
    """[Q] float64 NDCG@10 of the first candidates in their new order; ties count against the target."""
    cut = slice(0, _JUDGED)
    score_QK = (lists.score_QK + weight * added_QK)[:, cut]
    is_target_QK = lists.is_target_QK[:, cut]
    own_Q1 = score_QK.masked_fill(~is_target_QK, -torch.inf).amax(1, keepdim=True)
    ahead_Q = (score_QK >= own_Q1).sum(1)
    return torch.where(is_target_QK.any(1) & (ahead_Q <= 10), 1.0 / torch.log2(ahead_Q + 1.0), 0.0).double()


def _weight(lists: _Lists, added_QK: Tensor) -> float:
    """The weight whose gain less its standard error is largest; 0 where the gain of each fifth of the lists under the
    weight that the other four choose is within two standard errors."""
    more_WQ = torch.stack([_gains(lists, added_QK, weight) for weight in _WEIGHTS])
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


def _joined(nets: list[FeedbackNet]) -> FeedbackNet:
    """One net with the members of all."""
    states = [net.state_dict() for net in nets]
    whole = FeedbackNet(states[0]["linear_MF"].shape[1], _HIDDEN, _MEMBERS * len(nets))
    whole.load_state_dict({name: torch.cat([state[name] for state in states]) for name in states[0]})
    return whole.eval()
