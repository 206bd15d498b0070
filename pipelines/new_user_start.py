"""What users without any event start from: the frequent items, beside what the model makes of no history.

Suffixes: Q = requests, B = requests of a batch, I = items, P = items to start from, F = weights tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from recsys.dataset import Dataset
from recsys.events import Requests
from recsys.model import UnifiedModel
from recsys.past_counts import training_mask
from recsys.pipelines.request_tensors import request_tensors

__all__ = ["ChosenStart", "choose_new_user_start"]

_NUM_ITEMS = 256
_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_FEWEST = 50
"""Requests below which nothing is chosen."""
_SCORES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class ChosenStart:
    """Items with their terms, and NDCG@10 of the validation targets when asked for without any history."""

    items: tuple[int, ...]
    values: tuple[float, ...]
    ndcg: float
    plain_ndcg: float
    """Without the terms."""


@torch.inference_mode()
def choose_new_user_start(
    model: UnifiedModel, dataset: Dataset, requests: Requests, learned: float
) -> ChosenStart | None:
    """Choose b of the terms b · ln((1 + n_i) / (1 + n)) of the 256 most frequent items.

    n_i are positive training events of an item, n those of the first item after them.

    Args:
        model: in evaluation mode.
        requests: of validation.
        learned: weight of the learned score.

    Returns:
        None where there are few requests or the terms do no good.
    """
    if len(requests) < _FEWEST:
        return None
    counts_N = training_mask(dataset) & dataset.is_positive() & (dataset.events.item >= 0)
    count_I = torch.from_numpy(np.bincount(dataset.events.item[counts_N], minlength=dataset.num_items))
    most, item_P = count_I.sort(descending=True, stable=True)
    most, item_P = most[: _NUM_ITEMS + 1], item_P[:_NUM_ITEMS]
    value_P = torch.log1p(most.float())[: len(item_P)] - torch.log1p(most[-1].float())
    item_P, value_P = item_P[value_P > 0], value_P[value_P > 0]
    if not len(item_P):
        return None
    empty = replace(requests, end=np.zeros_like(requests.end))
    vectors_ID = model.item_vectors()
    step = max(1, _SCORES_AT_ONCE // dataset.num_items)
    ranks = []
    for low in range(0, len(empty), step):
        part = empty.rows(np.arange(low, min(low + step, len(empty))))
        histories, at_B, surface_B, target_B = request_tensors(dataset, part, model.device)
        states = model.encode(histories, keep_cache=False, user_BK=dataset.user_rows(part.user))
        score_BI = (model.query(states, at_B, surface_B) @ vectors_ID.T).float().cpu() * learned
        target_B1 = target_B.cpu()[:, None]
        found = []
        for weight, before in zip(_WEIGHTS, (0.0, *_WEIGHTS), strict=False):
            score_BI[:, item_P] += (weight - before) * value_P
            found.append((score_BI >= score_BI.gather(1, target_B1)).sum(1))
        ranks.append(torch.stack(found, 1))
    rank_QF = torch.cat(ranks)
    ndcg_F = torch.where(rank_QF <= 10, 1.0 / torch.log2(rank_QF + 1.0), 0.0).double().mean(0).tolist()
    best = int(np.argmax(ndcg_F))
    if not best:
        return None
    values = tuple(round(float(value), 4) for value in _WEIGHTS[best] * value_P)
    return ChosenStart(tuple(item_P.tolist()), values, ndcg_F[best], ndcg_F[0])
