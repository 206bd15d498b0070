"""Fitting the head that has the last word on the first hits of the hybrid retriever.

Suffixes: Q = lists that hold their target, B = requests of a batch, L = candidates of a list, F = features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from recsys.dataset import Dataset
from recsys.pipelines.console import progress_bar
from recsys.pipelines.list_head_fit import FittedListHead, TargetLists, fit_list_head
from recsys.pipelines.recipe import validation_requests
from recsys.pipelines.request_tensors import exclusions, request_tensors
from recsys.retrieval.bundle_retrievers import RetrieverParts
from recsys.retrieval.hybrid import LISTED, first_of
from recsys.retrieval.hybrid_weights import HybridWeights
from recsys.retrieval.list_features import ListFeatures

__all__ = ["fit_hybrid_head"]

_LEAST = 200
"""Lists that hold their target without which no head is fitted."""
_BATCH = 128


def fit_hybrid_head(parts: RetrieverParts, weights: HybridWeights, dataset: Dataset) -> FittedListHead | None:
    """The head for a union under some weights; None where few lists hold their target, or where it gains nothing.

    All validation requests of the recipe are looked at. The head is believed only as far as nets that learned from
    other lists gain: see :func:`recsys.pipelines.list_head_fit.fit_list_head`.

    Args:
        parts: of training events alone.
        weights: of the union.
        dataset: that the model was trained on.
    """
    lists = _lists(parts, weights, dataset)
    if len(lists.score_QK) < _LEAST:
        return None
    fitted = fit_list_head(lists, judged=LISTED, hears_new=not weights.holds_new)
    return fitted if fitted.head.weight else None


@torch.inference_mode()
def _lists(parts: RetrieverParts, weights: HybridWeights, dataset: Dataset) -> TargetLists:
    """The first of the unions of those validation requests whose target is among them."""
    retriever = parts.hybrid(weights)
    features = ListFeatures(retriever.dense, parts.graph)
    requests, device = validation_requests(dataset), parts.model.device
    nothing = torch.zeros(0, LISTED)
    found = [(nothing[..., None].expand(-1, -1, len(features.names)), nothing, nothing.bool(), nothing.bool())]
    with progress_bar("first hits of hybrid", len(requests), "requests") as advance:
        for low in range(0, len(requests), _BATCH):
            part = requests.rows(np.arange(low, min(low + _BATCH, len(requests))))
            advance(len(part))
            histories, at_B, surface_B, target_B = request_tensors(dataset, part, device)
            states = parts.model.encode(histories, user_BK=dataset.user_rows(part.user))
            exclude_BE = exclusions(histories).to(device)
            union = retriever.union(states, LISTED, at_B=at_B, surface_B=surface_B, exclude_QE=exclude_BE)
            score_BL, item_BL, _ = first_of(union, union.score(weights))
            missing = LISTED - item_BL.shape[1]
            score_BL, item_BL = F.pad(score_BL, (0, missing), value=-torch.inf), F.pad(item_BL, (0, missing), value=-1)
            rows = (item_BL == target_B[:, None]).any(1).nonzero().flatten()
            if not len(rows):
                continue
            states, item_QL, at_Q, surface_Q = states.select(rows), item_BL[rows], at_B[rows], surface_B[rows]
            feature_QLF = features(states, item_QL, states.recent_BM, at_Q, surface_Q).feature_BKF
            is_target_QL = item_QL == target_B[rows, None]
            is_new_QL = torch.isin(item_QL, retriever.cold_N)
            found.append((feature_QLF.cpu(), score_BL[rows].cpu(), is_target_QL.cpu(), is_new_QL.cpu()))
    feature_QLF, score_QL, is_target_QL, is_new_QL = (torch.cat(column) for column in zip(*found, strict=True))
    return TargetLists(feature_QLF, score_QL, is_target_QL, len(requests), features.names, is_new_QL)
