"""The items nearest to one.

Suffixes: I = items, K = hits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recsys.errors import InputError, shown
from recsys.kernels.topk import topk_smaller_id
from recsys.retrieval.answer import short_notes
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.snapshot import Snapshot

__all__ = ["similar_items"]


@torch.inference_mode()
def similar_items(snapshot: Snapshot, item_id: Any, k: int) -> Page:
    """By cosine of item vectors; equal ones by place in the catalogue. The one may be withdrawn, the others are not.

    Raises:
        InputError: the catalogue does not hold the item.
    """
    bundle, length_I = snapshot.bundle, snapshot.length_I.clamp_min(1e-12)
    item = int(bundle.vocabulary.items.index([item_id])[0])
    if item < 0:
        raise InputError(f"item {shown(item_id)} is not in the catalogue of {bundle.path}")
    cosine_I = (bundle.vectors @ (bundle.vectors[item] / length_I[item])) / length_I
    cosine_I[item] = -torch.inf
    num_left = len(cosine_I) - len(np.union1d(bundle.withdrawn_G, [item]))
    if bundle.index.gone_I is not None:
        cosine_I.masked_fill_(bundle.index.gone_I, -torch.inf)
    num_hits = min(k, num_left)
    every_I = torch.arange(len(cosine_I), device=snapshot.device)
    best_1K, near_1K = topk_smaller_id(cosine_I[None], every_I[None], num_hits)
    ids = bundle.vocabulary.items.take(near_1K[0].tolist())
    hits = [Hit(name, score, {}, "similar") for name, score in zip(ids, best_1K[0].tolist(), strict=True)]
    return Page(tuple(hits), num_left, short_notes(num_hits, k, num_left), snapshot.version)
