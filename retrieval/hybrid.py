"""The retriever that joins all others: the union of their hits under one score.

Beams reach items that the dense score holds to be unlikely, the item graph those it has never seen, and a budget of its
own those without training events. After LIGER (arXiv 2411.18814), which ranks a union of beams and cold items by dense
scores alone; here the log-probability of the codes stays a part of the score, since the dense score by itself would
return its own order. Where a head of lists was fitted, it has the last word on the first of the union.

Suffixes: B = users, K = hits, C = candidates of the union, L = candidates that the head scores, E = exclusions,
N = allowed items, D = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.index.hits import SourcedHits
from recsys.kernels.topk import topk_smaller_id
from recsys.list_head import ListHead, keep_places
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.hybrid_weights import HybridWeights
from recsys.retrieval.list_features import ListFeatures
from recsys.retrieval.memory import MemoryRetriever
from recsys.retrieval.protocol import CodeRetriever
from recsys.user_state import UserStates

__all__ = ["LISTED", "HybridRetriever", "Union", "first_of"]

LISTED = 50
"""Candidates whose scores a head refines."""


@dataclass(frozen=True, slots=True)
class Union:
    """Candidates of all searches, each once, with the parts of their scores."""

    item_BC: Tensor
    """[B, C] int64, −1 = empty place."""
    source_BC: Tensor
    """[B, C] int64 place among the sources: the first that brought the item."""
    dense_BC: Tensor
    """[B, C] float32 dense score with its memory terms."""
    learned_BC: Tensor
    """[B, C] float32 inner products of the query with the items' vectors."""
    logp_BC: dict[str, Tensor]
    """[B, C] float32 log-probabilities of the codes, by retriever."""
    cold_BC: Tensor
    """[B, C] bool, items without training events."""

    def score(self, weights: HybridWeights) -> Tensor:
        """[B, C] float32; −inf in empty places. New items stand where the dense score puts them, if they are held."""
        score_BC = self.sum(weights)
        if not weights.holds_new:
            return score_BC
        return keep_places(self.dense_BC.masked_fill(self.item_BC < 0, -torch.inf), score_BC, self.cold_BC)

    def sum(self, weights: HybridWeights) -> Tensor:
        """[B, C] float32, item by item; −inf in empty places."""
        score_BC = self.dense_BC + weights.cold * self.cold_BC
        if weights.learned:
            score_BC = score_BC + weights.learned * self.learned_BC
        for name, weight in weights.codes.items():
            if weight:
                score_BC = score_BC + weight * self.logp_BC[name]
        return score_BC.masked_fill(self.item_BC < 0, -torch.inf)


class HybridRetriever:
    """score(i) = dense(i) + u · learned(i) + Σ_h w_h · log p_h(codes of i) + c · [i has no training events], among a
    union of hits.

    With ``weights.holds_new`` items without training events stand where the dense score puts them among the union, and
    this score, with what the head adds, is for the others.

    Args:
        dense: the dense retriever with its memory terms.
        memory: neighbours in the item graph.
        codes: retrievers by semantic IDs, those of the bundle.
        cold_N: [N] int64 items without training events, strictly rising.
        weights: chosen on validation. With all of them 0 and no head the order is that of ``dense``.
        head: adds to the score of the first :data:`LISTED` of the union what it makes of ``features``; they stay ahead
            of all others. None = the sum alone.
        features: those that the head was fitted with.
    """

    name = "hybrid"
    lists_only = True

    def __init__(
        self,
        dense: DenseRetriever,
        memory: MemoryRetriever,
        codes: Sequence[CodeRetriever],
        cold_N: Tensor,
        weights: HybridWeights,
        head: ListHead | None = None,
        features: ListFeatures | None = None,
    ) -> None:
        known = {one.name for one in codes}
        if not set(weights.codes) <= known:
            raise ValueError(f"weights are of {sorted(weights.codes)}, but the retrievers by codes are {sorted(known)}")
        if head is not None and (features is None or features.names != head.names):
            raise ValueError("the head reads other features than there are")
        self.dense, self.memory, self.cold_N, self.weights = dense, memory, cold_N, weights
        self.head, self.features = head, features
        self.codes = [one for one in codes if weights.codes.get(one.name, 0.0) or weights.budgets.get(one.name, 0)]
        self.reads_cache = any(one.reads_cache for one in self.codes)
        self.sources = ("dense", *(one.name for one in self.codes), "memory", "cold")

    @torch.no_grad()
    def search(
        self,
        states: UserStates,
        k: int,
        *,
        at_B: Tensor,
        surface_B: Tensor,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> SourcedHits:
        """The k best items of the union; see :class:`recsys.retrieval.protocol.Retriever`."""
        union = self.union(states, k, at_B=at_B, surface_B=surface_B, exclude_QE=exclude_QE, allow_N=allow_N)
        score_BC = union.score(self.weights)
        if self.head is not None and union.item_BC.shape[1]:
            score_BC = self._refined(states, union, score_BC, at_B=at_B, surface_B=surface_B)
        scores_BK, ids_BK = topk_smaller_id(score_BC, union.item_BC, k)
        return SourcedHits(ids_BK, scores_BK, union.source_BC.gather(1, _places(union.item_BC, ids_BK)))

    @torch.no_grad()
    def union(
        self,
        states: UserStates,
        k: int,
        *,
        at_B: Tensor,
        surface_B: Tensor,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> Union:
        """Candidates of all searches, each with the parts of its score."""
        request: dict[str, Any] = {"at_B": at_B, "surface_B": surface_B, "exclude_QE": exclude_QE}
        budgets = {"dense": 100, "memory": 0, "cold": 20} | self.weights.budgets
        found = [self.dense.search(states, max(k, budgets["dense"]), allow_N=allow_N, **request).ids_QK]
        others: list[CodeRetriever | MemoryRetriever] = [*self.codes, self.memory]
        for one in others:
            hits = budgets.get(one.name, 50)
            found.append(one.search(states, hits, allow_N=allow_N, **request).ids_QK if hits else found[0][:, :0])
        cold_N = self.cold_N if allow_N is None else self.cold_N[torch.isin(self.cold_N, allow_N)]
        if budgets["cold"] and len(cold_N):
            found.append(self.dense.search(states, budgets["cold"], allow_N=cold_N, **request).ids_QK)
        item_BC, source_BC = _union(found)
        return self._parts_of(states, item_BC, source_BC, at_B=at_B, surface_B=surface_B)

    def _parts_of(
        self, states: UserStates, item_BC: Tensor, source_BC: Tensor, *, at_B: Tensor, surface_B: Tensor
    ) -> Union:
        """Some items with the parts of their scores."""
        request = {"at_B": at_B, "surface_B": surface_B}
        weighed = [one for one in self.codes if self.weights.codes.get(one.name, 0.0)]
        return Union(
            item_BC,
            source_BC,
            self.dense.scores_of(states, item_BC, **request),
            self.dense.learned_scores_of(states, item_BC, **request),
            {one.name: one.scores_of(states, item_BC, **request) for one in weighed},
            torch.isin(item_BC, self.cold_N),
        )

    @torch.no_grad()
    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 scores of some items, whatever the searches would find; −inf in padded places (−1).

        Without what a head adds, or places that are kept: these depend on the list.
        """
        none_BC = torch.zeros_like(item_BC)
        union = self._parts_of(states, item_BC, none_BC, at_B=at_B, surface_B=surface_B)
        return union.sum(self.weights)

    def _refined(
        self, states: UserStates, union: Union, score_BC: Tensor, *, at_B: Tensor, surface_B: Tensor
    ) -> Tensor:
        """[B, C] scores with what the head adds to the best; the others keep their distance to the last of these,
        which is counted from the lowest refined score."""
        assert self.head is not None and self.features is not None
        score_BL, item_BL, place_BL = first_of(union, score_BC)
        dense_BL = F.pad(union.dense_BC, (0, 1)).gather(1, place_BL)
        rows = self.features(states, item_BL, states.recent_BM, at_B, surface_B, dense_BL)
        refined_BL = self.head.refined(score_BL, rows.feature_BKF, torch.isin(item_BL, self.cold_N))
        lowest_B1 = refined_BL.masked_fill(item_BL < 0, torch.inf).amin(1, keepdim=True)
        last_B1 = score_BL.masked_fill(item_BL < 0, torch.inf).amin(1, keepdim=True)
        rest_BC = torch.where(score_BC > -torch.inf, lowest_B1 - (last_B1 - score_BC), score_BC)
        return F.pad(rest_BC, (0, 1)).scatter(1, place_BL, refined_BL)[:, :-1]

    @torch.no_grad()
    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue, without what depends on the list: see :meth:`scores_of`."""
        every_BI = torch.arange(len(self.dense.vectors), device=at_B.device).expand(states.num_users, -1)
        score_BI = self.dense.scores(states, at_B=at_B, surface_B=surface_B)
        score_BI = score_BI + self.weights.cold * torch.isin(every_BI, self.cold_N)
        if self.weights.learned:
            learned_BI = self.dense.learned_scores_of(states, every_BI, at_B=at_B, surface_B=surface_B)
            score_BI = score_BI + self.weights.learned * learned_BI
        for one in self.codes:
            weight = self.weights.codes.get(one.name, 0.0)
            if weight:
                score_BI = score_BI + weight * one.scores_of(states, every_BI, at_B=at_B, surface_B=surface_B)
        return score_BI


def first_of(union: Union, score_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L] scores, items and places in the union of the candidates that a head scores, best first.

    Where there are fewer, (-inf, -1, C).
    """
    score_BL, item_BL = topk_smaller_id(score_BC, union.item_BC, min(LISTED, union.item_BC.shape[1]))
    return score_BL, item_BL, _places(union.item_BC, item_BL).masked_fill(item_BL < 0, score_BC.shape[1])


def _places(item_BC: Tensor, found_BK: Tensor) -> Tensor:
    """[B, K] where items stand in a union, in which those of a row are distinct; any place for a missing one."""
    order_BC = item_BC.argsort(1)
    at_BK = torch.searchsorted(item_BC.gather(1, order_BC), found_BK).clamp_max(order_BC.shape[1] - 1)
    return order_BC.gather(1, at_BK)


def _union(found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Hits of several searches, each item once and with the first search that brought it; rising, −1 padded last.

    >>> _union([torch.tensor([[4, 2]]), torch.tensor([[2, 7, -1]])])
    (tensor([[ 2,  4,  7, -1, -1]]), tensor([[0, 0, 1, 0, 0]]))
    """
    item_BC = torch.cat(list(found), 1)
    source_C = torch.repeat_interleave(
        torch.arange(len(found), device=item_BC.device),
        torch.tensor([one.shape[1] for one in found], device=item_BC.device),
    )
    item_BC, order_BC = item_BC.sort(dim=1, stable=True)
    source_BC = source_C[order_BC]
    repeated_BC = torch.zeros_like(item_BC, dtype=torch.bool)
    repeated_BC[:, 1:] = item_BC[:, 1:] == item_BC[:, :-1]
    gone_BC = repeated_BC | (item_BC < 0)
    order_BC = gone_BC.to(torch.uint8).argsort(dim=1, stable=True)
    gone_BC = gone_BC.gather(1, order_BC)
    item_BC = item_BC.gather(1, order_BC).masked_fill(gone_BC, -1)
    return item_BC, source_BC.gather(1, order_BC).masked_fill(gone_BC, 0)
