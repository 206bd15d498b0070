"""Memory terms: what the item graph says of every item, given the last positive items of a user.

A user without any event has none of those; frequent items may have terms for such a user instead.

Suffixes: B = users, M = recent items, R = relations, T = edges, X = distinct (user, item) pairs, I = items,
C = items asked for, P = items to start from, S = users who start.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys.index.item_graph import TRANSITION, ItemGraph
from recsys.index.pair_values import pair_values
from recsys.index.walks import WALKS

__all__ = ["MemoryTerms", "MemoryWeights"]


@dataclass(frozen=True, slots=True)
class MemoryWeights:
    """Weights of w · s(i) + Σ_j Σ_r c · b_{r,j} · f_r(h_j -> i), s being the learned score and h_0 the newest item."""

    learned: float
    """w; 0 leaves the terms alone."""
    relations: dict[str, tuple[float, ...]]
    """b of each relation for h_0, h_1, …; a relation that is not named is off."""
    new_items: float = 1.0
    """c of an item without training events in relations of content; c is 1 for all others."""
    start_items: tuple[int, ...] = ()
    """Items that a user without any event has terms for."""
    start_values: tuple[float, ...] = ()
    """Those terms."""

    def __post_init__(self) -> None:
        if len(self.start_items) != len(self.start_values):
            raise ValueError(f"{len(self.start_items)} items to start from have {len(self.start_values)} values")
        numbers = [self.learned, self.new_items, *self.start_values]
        numbers += [b for row in self.relations.values() for b in row]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"weights of memory terms must be finite and at least 0, got {self.to_dict()}")

    @classmethod
    def decaying(cls, learned: float, weights: Mapping[str, float], recent: int, decay: float) -> MemoryWeights:
        """b_{r,j} = weights[r] · decay^j for ``recent`` items."""
        return cls(learned, {name: tuple(b * decay**j for j in range(recent)) for name, b in weights.items()})

    def to_dict(self) -> dict[str, Any]:
        rows = {name: list(row) for name, row in self.relations.items()}
        start = {"start_items": list(self.start_items), "start_values": list(self.start_values)}
        return {"learned": self.learned, "relations": rows, "new_items": self.new_items, **start}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MemoryWeights:
        """Read what :meth:`to_dict` wrote."""
        rows = {str(name): tuple(float(b) for b in row) for name, row in values["relations"].items()}
        items = tuple(int(item) for item in values.get("start_items", ()))
        start = tuple(float(value) for value in values.get("start_values", ()))
        return cls(float(values["learned"]), rows, float(values.get("new_items", 1.0)), items, start)


class MemoryTerms:
    """The terms Σ_j Σ_r c · b_{r,j} · f_r(h_j -> i) of one graph under fixed weights."""

    def __init__(
        self,
        graph: ItemGraph,
        relations: Mapping[str, Sequence[float]],
        *,
        is_new_I: Tensor | None = None,
        new_items: float = 1.0,
        start_items: Sequence[int] = (),
        start_values: Sequence[float] = (),
    ) -> None:
        """Keep the graph and lay out the weights.

        Args:
            graph: whose relations the weights name.
            relations: b per relation and place; places beyond the end of a row have weight 0.
            is_new_I: [I] bool, items without training events; None = none.
            new_items: c of those in relations of content.
            start_items: items that users without any event have terms for. start_values: those terms.
        """
        for name in relations:
            if name not in graph.relations:
                raise ValueError(
                    f"the item graph has no relation {name!r}; it has {', '.join(graph.relations) or 'none'}"
                )
        self.graph = graph
        places = max((len(row) for row in relations.values()), default=0)
        weight_MR = torch.zeros(places, len(graph.relations))
        for name, row in relations.items():
            weight_MR[: len(row), graph.relations.index(name)] = torch.tensor(row)
        device = graph.values.device
        self.weight_MR = weight_MR.to(device)
        counted = (TRANSITION, *WALKS)
        self._is_content_R = torch.tensor([name not in counted for name in graph.relations], device=device)
        factor_I = None if is_new_I is None or new_items == 1.0 else torch.where(is_new_I, new_items, 1.0).to(device)
        self._factor_I = factor_I
        self._start_P = torch.tensor(start_items, dtype=torch.int64, device=device)
        self._start_value_P = torch.tensor(start_values, dtype=torch.float32, device=device)

    @classmethod
    def weighted(
        cls, graph: ItemGraph, weights: MemoryWeights, is_new_I: Tensor, relations: Collection[str] | None = None
    ) -> MemoryTerms:
        """The terms of some weights.

        Args:
            is_new_I: [I] bool, items without training events.
            relations: those of the weights that are on; None = all of them.
        """
        on = {name: row for name, row in weights.relations.items() if relations is None or name in relations}
        return cls(
            graph,
            on,
            is_new_I=is_new_I,
            new_items=weights.new_items,
            start_items=weights.start_items,
            start_values=weights.start_values,
        )

    @property
    def is_empty(self) -> bool:
        """Whether no item has a term, whoever asks."""
        return not bool(self.weight_MR.any()) and not len(self._start_P)

    def edges(self, recent_BM: Tensor, is_new_B: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """User, neighbour and weighted value of every edge from recent items; a pair may occur several times.

        Args:
            recent_BM: [B, M] int64 last positive items, newest first, -1 padded.
            is_new_B: [B] bool, users without any event; None = nobody.

        Returns:
            [T] int64, [T] int64 and [T] float32; new users come last.
        """
        graph = self.graph
        num_relations, places = len(graph.relations), min(recent_BM.shape[1], len(self.weight_MR))
        recent_BM = recent_BM[:, :places].to(graph.indptr.device)
        live_BMR = (recent_BM >= 0)[:, :, None] & (self.weight_MR[:places] > 0)
        user_X, place_X, relation_X = live_BMR.nonzero(as_tuple=True)
        row_X = recent_BM[user_X, place_X] * num_relations + relation_X
        owner_T, item_T, value_T = graph.edges(row_X)
        term_T = value_T * self.weight_MR[place_X, relation_X][owner_T]
        if self._factor_I is not None:
            term_T = torch.where(self._is_content_R[relation_X][owner_T], term_T * self._factor_I[item_T], term_T)
        user_T, num_starts = user_X[owner_T], len(self._start_P)
        if is_new_B is None or not num_starts:
            return user_T, item_T, term_T
        starts_S = is_new_B.to(user_T.device).nonzero().flatten()
        return (
            torch.cat([user_T, starts_S.repeat_interleave(num_starts)]),
            torch.cat([item_T, self._start_P.repeat(len(starts_S))]),
            torch.cat([term_T, self._start_value_P.repeat(len(starts_S))]),
        )

    def parts(self, recent_M: Tensor, item: int) -> Tensor:
        """[M, R] the terms of one item by recent item and relation; those of a user without any event not among them.

        Args:
            recent_M: [M] int64 last positive items, newest first, -1 padded.
        """
        graph, places = self.graph, min(len(recent_M), len(self.weight_MR))
        recent_M = recent_M[:places].to(graph.indptr.device)
        part_MR = pair_values(graph, recent_M, torch.full_like(recent_M, item)) * self.weight_MR[:places]
        if self._factor_I is not None:
            part_MR = torch.where(self._is_content_R, part_MR * self._factor_I[item], part_MR)
        return part_MR

    def start_value(self, item: int) -> float:
        """The term of an item for a user without any event."""
        return float(self._start_value_P[self._start_P == item].sum())

    def add_to(self, score_BI: Tensor, recent_BM: Tensor, is_new_B: Tensor | None = None) -> None:
        """Add the terms of every item to [B, I] contiguous float32 scores on the graph's device."""
        user_T, item_T, term_T = self.edges(recent_BM, is_new_B)
        score_BI.view(-1).index_add_(0, user_T * score_BI.shape[1] + item_T, term_T)

    def pairs(self, recent_BM: Tensor, is_new_B: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """User, item and sum of the terms of every item that has some: [X] each, by (user, item)."""
        user_T, item_T, term_T = self.edges(recent_BM, is_new_B)
        num_items = max(1, self.graph.num_items)
        # Stable, so that the terms of one item keep their order and their sum rounds as in `add_to`.
        key_T, order_T = (user_T * num_items + item_T).sort(stable=True)
        found_X, place_T = torch.unique_consecutive(key_T, return_inverse=True)
        sum_X = torch.zeros(len(found_X), dtype=torch.float32, device=key_T.device)
        sum_X.index_add_(0, place_T, term_T[order_T])
        return torch.div(found_X, num_items, rounding_mode="floor"), found_X % num_items, sum_X

    def sums_of(self, recent_BM: Tensor, item_BC: Tensor, is_new_B: Tensor | None = None) -> Tensor:
        """[B, C] float32 sums of the terms of some items of each user, as :meth:`add_to` adds them up; memory does not
        grow with the catalogue.

        Args:
            item_BC: [B, C] int64; padded places (−1) get 0.
        """
        user_X, item_X, sum_X = self.pairs(recent_BM, is_new_B)
        if not len(sum_X):
            return torch.zeros(item_BC.shape, device=item_BC.device)
        num_items = self.graph.num_items
        key_X = user_X * num_items + item_X
        row_B1 = torch.arange(len(item_BC), device=item_BC.device)[:, None]
        asked_BC = (row_B1 * num_items + item_BC).masked_fill(item_BC < 0, -1)
        at_BC = torch.searchsorted(key_X, asked_BC).clamp_max(len(key_X) - 1)
        return torch.where(key_X[at_BC] == asked_BC, sum_X[at_BC], 0.0)
