"""How much more content counts for items without training events, which no transition leads to.

Chosen on validation with items that do have training events, taken for new in turn: every item belongs to one of ten
parts, and a request is answered as if its target's part had no training events, by vectors of content alone and
without transitions to them.

Suffixes: Q = requests, B = requests of a batch, I = items, F = factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.events import Requests
from recsys.index.item_graph import TRANSITION, ItemGraph
from recsys.index.memory_terms import MemoryTerms, MemoryWeights
from recsys.index.walks import WALKS
from recsys.model import UnifiedModel
from recsys.pipelines.request_tensors import request_tensors

__all__ = ["ChosenFactor", "choose_new_item_factor"]

_FACTORS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)
_NUM_PARTS = 10
_FEWEST = 50
"""Requests below which nothing is chosen."""
_SCORES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class ChosenFactor:
    """The factor, and NDCG@10 of targets that were taken for new."""

    factor: float
    ndcg: float
    plain_ndcg: float
    """With factor 1."""
    content_ndcg: float
    """Of the terms of content alone, by which new and old items are equals."""


@torch.inference_mode()
def choose_new_item_factor(
    model: UnifiedModel, dataset: Dataset, graph: ItemGraph, requests: Requests, weights: MemoryWeights
) -> ChosenFactor | None:
    """The smallest factor with which new items fare no worse than by the terms of their content alone.

    Args:
        model: in evaluation mode.
        graph: of training events.
        requests: of validation. weights: chosen on them.

    Returns:
        None where there is nothing to choose: no item lacks training events, no relation of content has a weight, or
        the requests are few.
    """
    content = {name: row for name, row in weights.relations.items() if name not in (TRANSITION, *WALKS) and any(row)}
    is_new_I = ~model.items.has_id_I
    if not content or not bool(is_new_I.any()) or len(requests) < _FEWEST:
        return None
    ranks = _Ranks(model, dataset, graph, weights, content)
    step = max(1, _SCORES_AT_ONCE // dataset.num_items)
    batches = range(0, len(requests), step)
    rank_QF = torch.cat([ranks.of(requests.rows(np.arange(low, min(low + step, len(requests))))) for low in batches])
    gain_QF = torch.where(rank_QF <= 10, 1.0 / torch.log2(rank_QF + 1.0), 0.0)
    *ndcg_F, content_ndcg = gain_QF.double().mean(0).tolist()
    enough = [place for place, ndcg in enumerate(ndcg_F) if ndcg >= content_ndcg]
    place = enough[0] if enough else int(np.argmax(ndcg_F))
    return ChosenFactor(_FACTORS[place], ndcg_F[place], ndcg_F[0], content_ndcg)


class _Ranks:
    """Ranks of targets that are taken for new."""

    def __init__(
        self,
        model: UnifiedModel,
        dataset: Dataset,
        graph: ItemGraph,
        weights: MemoryWeights,
        content: dict[str, tuple[float, ...]],
    ) -> None:
        self.model, self.dataset, self.learned = model, dataset, weights.learned
        every_I = torch.ones_like(model.items.has_id_I)
        self.old_ID, self.new_ID = model.item_vectors(), model.item_vectors(every_I)
        counted = {name: row for name, row in weights.relations.items() if name not in content}
        self.content_terms, self.counted_terms = MemoryTerms(graph, content), MemoryTerms(graph, counted)
        part_I = np.random.default_rng(0).integers(0, _NUM_PARTS, dataset.num_items)
        self.part_I = torch.from_numpy(part_I).to(model.device)

    def of(self, requests: Requests) -> Tensor:
        """[B, F + 1] ranks from 1 by every factor, then by content alone; the history filtered, ties against it."""
        model, dataset = self.model, self.dataset
        histories, at_B, surface_B, target_B = request_tensors(dataset, requests, model.device)
        states = model.encode(histories, keep_cache=False, user_BK=dataset.user_rows(requests.user))
        query_BD = model.query(states, at_B, surface_B) * self.learned
        base_BI = (query_BD @ self.old_ID.T).float()
        self.counted_terms.add_to(base_BI, states.recent_BM)
        content_BI = torch.zeros_like(base_BI)
        self.content_terms.add_to(content_BI, states.recent_BM)
        is_new_BI = (self.part_I == self.part_I[target_B][:, None]) | ~model.items.has_id_I
        base_BI = torch.where(is_new_BI, (query_BD @ self.new_ID.T).float(), base_BI)
        seen_BI = torch.zeros_like(is_new_BI)
        for row, history in enumerate(histories):
            seen_BI[row, torch.from_numpy(history.item[history.item >= 0]).to(model.device)] = True
        lists = [base_BI + content_BI * torch.where(is_new_BI, factor, 1.0) for factor in _FACTORS]
        return torch.stack([_ranks(scores, seen_BI, target_B) for scores in (*lists, content_BI)], 1)


def _ranks(score_BI: Tensor, seen_BI: Tensor, target_B: Tensor) -> Tensor:
    own_B1 = score_BI.gather(1, target_B[:, None])
    rank_B = ((score_BI >= own_B1) & ~seen_BI).sum(1)
    return rank_B.masked_fill(seen_BI.gather(1, target_B[:, None])[:, 0], score_BI.shape[1] + 1)
