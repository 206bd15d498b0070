"""What a short list says of each of its candidates beside their scores: stored vectors and relations.

An affinity is a number between two items: the cosine of their vectors in one space, or f of one relation of the item
graph. Per affinity a candidate is compared with the newest items of the history and with the best candidates of its own
list, itself left out: the mean vector of either would give the same sums, so the weights of these features make a
refined user vector (pseudo-relevance feedback, as E2Rank, arXiv 2510.22733, reads the top of a list). No encoder runs.

Suffixes: B = requests, K = candidates, L = history items, N = feedback items, I = items, D = width, F = features,
S = other items (L or N), X = pairs, V = width of text vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.index.item_graph import TRANSITION, ItemGraph
from recsys.index.pair_values import pair_values
from recsys.retrieval.dense import DenseRetriever
from recsys.user_state import UserStates

__all__ = ["ListFeatures", "ListRows"]

_FEEDBACK = 10
"""Best candidates that all candidates are compared with."""
_FAST, _SLOW = 0.7, 0.93
"""Decays per item further back."""
_OF_LIST = ("gap", "share", "learned_gap", "memory", "cosine", "length", "degree", "events", "rank", "spread")
_OF_AFFINITY = (
    "newest", "second", "third", "most", "mean", "fast", "slow", "top3", "feedback", "feedback_mean", "feedback_most",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ListRows:
    """Features of lists."""

    feature_BKF: Tensor
    score_BK: Tensor
    """Dense scores; -inf at padded places."""
    query_BD: Tensor
    """The users' vectors."""


class ListFeatures:
    """Features of the candidates of lists.

    Args:
        dense: whose vectors and scores are read.
        graph: whose relations are read; the one that ``dense`` sums over, or one that knows more events.
        text_IV: [I', V] vectors of item texts, unit or zero rows, for a space of their own; items beyond I' count as
            without text. None = no such space.
    """

    # Log-probabilities of semantic IDs as further columns took 8 % of the gain away on Amazon Toys.
    def __init__(self, dense: DenseRetriever, graph: ItemGraph, *, text_IV: Tensor | None = None) -> None:
        self.dense, self.graph = dense, graph
        self._spaces: dict[str, Callable[[Tensor], Tensor]] = {"retrieval": dense.vectors.__getitem__}
        if dense.model.config.content_dim:
            self._spaces["content"] = dense.model.items.content_of
        if text_IV is not None:
            text_IV = text_IV.to(dense.vectors.device)
            rest = len(dense.vectors) - len(text_IV)
            self._spaces["encoder"] = (F.pad(text_IV, (0, 0, 0, rest)) if rest else text_IV).__getitem__
        affinities = [f"{name} vectors" for name in self._spaces] + [f"relation {r}" for r in self.graph.relations]
        if TRANSITION in self.graph.relations:
            affinities.append(f"relation {TRANSITION}, backwards")
        self.names = (*_OF_LIST, *(f"{one}: {of}" for one in affinities for of in _OF_AFFINITY))
        """What stands in each column."""

    @torch.inference_mode()
    def __call__(
        self,
        states: UserStates,
        item_BK: Tensor,
        recent_BL: Tensor,
        at_B: Tensor,
        surface_B: Tensor,
        score_BK: Tensor | None = None,
    ) -> ListRows:
        """Features of lists.

        Args:
            states: of B users; keys and values are not read.
            item_BK: [B, K] int64 candidates, -1 at padded places; no item twice in a row.
            recent_BL: [B, L] int64 items of the histories, newest first, -1 at the places that are missing.
            at_B: [B] int64 times of the requests. surface_B: [B] int64, 0 = unknown.
            score_BK: [B, K] dense scores, where the caller has them.
        """
        query_BD = self.dense.model.query(states, at_B, surface_B)
        if score_BK is None:
            score_BK = self.dense.scores_of(states, item_BK, at_B=at_B, surface_B=surface_B)
        score_BK = score_BK.masked_fill(item_BK < 0, -torch.inf)
        if not item_BK.numel():
            return ListRows(score_BK.new_zeros(*item_BK.shape, len(self.names)), score_BK, query_BD)
        # Equal scores stand in the order given; callers give a canonical one.
        order_BK = score_BK.argsort(dim=1, descending=True, stable=True)
        best_BN = order_BK[:, :_FEEDBACK]
        columns = self._of_list(item_BK, score_BK, order_BK, query_BD, states.num_events_B)
        weight_BN = (score_BK.gather(1, best_BN) - score_BK.amax(1, keepdim=True)).exp().nan_to_num(0.0)
        place_K = torch.arange(item_BK.shape[1], device=item_BK.device)
        other_BKN = (best_BN[:, None] != place_K[:, None]) & (item_BK.gather(1, best_BN) >= 0)[:, None]
        if recent_BL.shape[1] < 3:
            recent_BL = F.pad(recent_BL, (0, 3 - recent_BL.shape[1]), value=-1)
        past = self._affinities(item_BK, recent_BL)
        top = self._affinities(item_BK, item_BK.gather(1, best_BN))
        for past_BKL, top_BKN in zip(past, top, strict=True):
            columns += _over_history(past_BKL, recent_BL >= 0) + _over_feedback(top_BKN, weight_BN, other_BKN)
        feature_BKF = torch.stack(columns, -1).masked_fill((item_BK < 0)[..., None], 0.0)
        return ListRows(feature_BKF, score_BK, query_BD)

    def _of_list(
        self, item_BK: Tensor, score_BK: Tensor, order_BK: Tensor, query_BD: Tensor, num_events_B: Tensor
    ) -> list[Tensor]:
        vector_BKD = self.dense.vectors[item_BK.clamp_min(0)]
        length_BK = vector_BKD.norm(dim=-1)
        product_BK = (vector_BKD * query_BD[:, None]).sum(-1)
        learned_BK = self.dense.learned * product_BK
        best_B1 = score_BK.amax(1, keepdim=True)
        rank_BK = order_BK.argsort(dim=1).float()
        count_B1 = (item_BK >= 0).sum(1, keepdim=True)
        last_B1 = score_BK.gather(1, order_BK.gather(1, count_B1.clamp(1, _FEEDBACK) - 1))
        most_B1 = learned_BK.masked_fill(item_BK < 0, -torch.inf).amax(1, keepdim=True)
        columns = [
            score_BK - best_B1,
            score_BK.softmax(1),
            learned_BK - most_B1,
            score_BK - learned_BK,
            product_BK / (query_BD.norm(dim=1, keepdim=True) * length_BK).clamp_min(1e-9),
            length_BK,
            self._degree(item_BK),
            num_events_B.float().log1p()[:, None].expand_as(score_BK),
            rank_BK.log1p(),
            (best_B1 - last_B1).expand_as(score_BK),
        ]
        return [column.nan_to_num(0.0, posinf=0.0, neginf=0.0) for column in columns]

    def _degree(self, item_BK: Tensor) -> Tensor:
        """[B, K] ln(1 + transitions that start at an item), which says how common it is."""
        if TRANSITION not in self.graph.relations:
            return torch.zeros(item_BK.shape, device=item_BK.device)
        row_X = item_BK.clamp_min(0).flatten() * len(self.graph.relations) + self.graph.relations.index(TRANSITION)
        owner_T, _, _ = self.graph.edges(row_X)
        return torch.bincount(owner_T, minlength=len(row_X)).view(item_BK.shape).float().log1p()

    def _affinities(self, item_BK: Tensor, other_BS: Tensor) -> list[Tensor]:
        """[B, K, S] of every affinity; 0 where either item is missing."""
        known_BKS = (item_BK >= 0)[:, :, None] & (other_BS >= 0)[:, None]
        found = []
        for vectors_of in self._spaces.values():
            own_BKD, other_BSD = (
                F.normalize(vectors_of(places.clamp_min(0)).float(), dim=-1) for places in (item_BK, other_BS)
            )
            cosine_BKS = own_BKD @ other_BSD.mT
            found.append(cosine_BKS.masked_fill(~known_BKS, 0.0))
        if self.graph.relations:
            item_X = torch.where(known_BKS, item_BK[:, :, None], -1).flatten()
            other_X = torch.where(known_BKS, other_BS[:, None], -1).flatten()
            found += pair_values(self.graph, other_X, item_X).view(*known_BKS.shape, -1).unbind(-1)
            if TRANSITION in self.graph.relations:
                place = self.graph.relations.index(TRANSITION)
                found.append(pair_values(self.graph, item_X, other_X)[:, place].view(known_BKS.shape))
        return found


def _over_history(value_BKL: Tensor, known_BL: Tensor) -> list[Tensor]:
    """Columns of an affinity to history items, 0 where these are missing; what is missing is no item of affinity 0."""
    place_L = torch.arange(value_BKL.shape[2], device=value_BKL.device)
    count_B1 = known_BL.sum(1, keepdim=True).clamp_min(1)
    slow_L = _SLOW**place_L
    best_BK3 = value_BKL.masked_fill(~known_BL[:, None], -torch.inf).topk(3, dim=-1).values
    best_BK3 = best_BK3.masked_fill(best_BK3 == -torch.inf, 0.0)
    return [
        *value_BKL[:, :, :3].unbind(-1),
        best_BK3[..., 0],
        value_BKL.sum(-1) / count_B1,
        (value_BKL * _FAST**place_L).sum(-1),
        (value_BKL * slow_L).sum(-1) / (known_BL * slow_L).sum(1, keepdim=True).clamp_min(1.0),
        best_BK3.sum(-1) / count_B1.clamp_max(3),
    ]


def _over_feedback(value_BKN: Tensor, weight_BN: Tensor, other_BKN: Tensor) -> list[Tensor]:
    value_BKN = value_BKN.masked_fill(~other_BKN, 0.0)
    weight_BKN = weight_BN[:, None] * other_BKN
    return [
        (value_BKN * weight_BKN).sum(-1) / weight_BKN.sum(-1).clamp_min(1e-9),
        value_BKN.sum(-1) / other_BKN.sum(-1).clamp_min(1),
        value_BKN.amax(-1),
    ]
