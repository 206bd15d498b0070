"""Fitting the head of embedding feedback on the dense lists of validation requests.

Suffixes: Q = lists that hold their target, B = requests of a batch, K = candidates, F = features, M = members.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Requests
from recsys.pipelines.item_text_vectors import encoded_texts
from recsys.pipelines.list_head_fit import TargetLists, fit_list_head
from recsys.pipelines.recipe import validation_requests
from recsys.pipelines.request_tensors import exclusions, request_tensors
from recsys.retrieval.rerank.feedback_features import FeedbackFeatures
from recsys.retrieval.rerank.feedback_head import FeedbackHead

__all__ = ["FittedFeedback", "fit_feedback"]

_LEARNED, _JUDGED = 50, 20
"""Candidates of a list that nets learn from, and those that are put in order to choose the weight."""
_BATCH = 128
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
    fitted = fit_list_head(lists, judged=_JUDGED, seed=seed)
    report = {
        "dense_ndcg@10": fitted.start_ndcg, "ndcg@10": fitted.ndcg, "num_requests": lists.num_requests,
        "num_lists": num_lists, "text_encoder": None if text_encoder is None else text_encoder.name,
        "data_hash": bundle.data_hash,
    }  # fmt: skip
    head = FeedbackHead(head=fitted.head, model_hash=bundle.model_hash, text_IV=text_IV, report=report)
    return FittedFeedback(head, fitted.ndcg, fitted.start_ndcg, lists.num_requests, num_lists, time.monotonic() - start)


@torch.inference_mode()
def _lists(bundle: Bundle, dataset: Dataset, requests: Requests, features: FeedbackFeatures) -> TargetLists:
    """Features of the validation lists that hold their target."""
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
        return TargetLists(nothing[..., None], nothing, nothing.bool(), len(requests), features.names)
    feature_QKF, score_QK, is_target_QK = (torch.cat(column) for column in zip(*parts, strict=True))
    return TargetLists(feature_QKF, score_QK, is_target_QK, len(requests), features.names)
