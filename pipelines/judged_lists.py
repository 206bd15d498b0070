"""Lists with what the users then chose, and how good an order of them is.

Suffixes: Q = lists, K = places of a list, R = rows of all lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsys.bootstrap import mean_intervals
from recsys.errors import shown
from recsys.metrics import MISS, ndcg_at
from recsys.ranking_metrics import ndcg_groups
from recsys.retrieval.rerank.request import RerankRequest

__all__ = ["RerankLists"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankLists:
    """Q lists, and which of their items were chosen."""

    kind: Literal["targets", "slates"]
    """``targets``: one item was chosen, and retrieval may have missed it. ``slates``: what was shown together."""
    requests: tuple[RerankRequest, ...]
    user_Q: Ints
    """Internal users."""
    user_ids: tuple[Any, ...]
    """As the caller calls them."""
    target_ids: tuple[Any, ...]
    """The item chosen; None for slates."""
    gains: tuple[tuple[float, ...], ...]
    """Of each list's candidates, in their order: 1 = chosen, else 0."""
    num_asked: int
    """Lists that were looked at to find these; more than Q where only those that hold their target were kept."""

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def hit_Q(self) -> NDArray[np.bool_]:
        """[Q] whether a list holds an item that was chosen."""
        return np.array([any(gain) for gain in self.gains], dtype=np.bool_)

    def take(self, rows: Sequence[int] | Ints) -> RerankLists:
        """Some of the lists; they count as all that were looked at."""
        rows = [int(row) for row in rows]
        return replace(
            self,
            requests=tuple(self.requests[row] for row in rows),
            user_Q=self.user_Q[rows],
            user_ids=tuple(self.user_ids[row] for row in rows),
            target_ids=tuple(self.target_ids[row] for row in rows),
            gains=tuple(self.gains[row] for row in rows),
            num_asked=len(rows),
        )

    def hits(self) -> RerankLists:
        """The lists that hold an item that was chosen; how many were looked at stays known."""
        return replace(self.take(np.flatnonzero(self.hit_Q)), num_asked=self.num_asked)

    def ranks(self, orders: Sequence[Sequence[Any]] | None = None) -> Ints:
        """[Q] places of the first chosen item, from 1; :data:`~recsys.metrics.MISS` in a list without any.

        Args:
            orders: ids of each list, best first; None = as the lists are.

        Raises:
            ValueError: an order is no permutation of its list.
        """
        found = np.full(len(self), MISS, dtype=np.int64)
        for row, gain_K in enumerate(self._ordered(orders)):
            found[row] = next((place for place, gain in enumerate(gain_K, start=1) if gain), MISS)
        return found

    def ndcg(self, orders: Sequence[Sequence[Any]] | None = None, k: int = 10) -> Floats:
        """[Q] NDCG of the first k places; 0 for a list without a chosen item.

        Args:
            orders: ids of each list, best first; None = as the lists are.
            k: places that count.
        """
        if self.kind == "targets":
            return ndcg_at(self.ranks(orders), k)
        ordered = self._ordered(orders)
        length_Q = [len(gain_K) for gain_K in ordered]
        chosen_R = np.array([gain > 0 for gain_K in ordered for gain in gain_K], dtype=np.bool_)
        score_R = np.concatenate([np.zeros(0), *(-np.arange(length, dtype=np.float64) for length in length_Q)])
        ndcg_Q = np.zeros(len(self))
        list_G, ndcg_G = ndcg_groups(chosen_R, score_R, np.repeat(np.arange(len(self)), length_Q), k)
        ndcg_Q[list_G] = ndcg_G
        return ndcg_Q

    def figures(self, orders: Sequence[Sequence[Any]] | None = None, *, seed: int, k: int = 10) -> dict[str, Any]:
        """NDCG with 95 % intervals over users, over the lists that hold a chosen item and over all that were asked.

        Args:
            orders: ids of each list, best first; None = as the lists are.
            seed: of the intervals.
            k: places that count.

        Returns:
            ``ndcg@k`` over all that were asked (lists that were not kept count 0), ``ndcg@k_hits`` over those that
            hold a chosen item, ``changed`` = share of lists whose first k differ from the given order, and counts.
        """
        ndcg_Q, hit_Q = self.ndcg(orders, k), self.hit_Q
        figures: dict[str, Any] = {"num_lists": len(self), "num_hits": int(hit_Q.sum()), "num_asked": self.num_asked}
        if not len(self):
            return figures
        # Those that were asked and not kept hold no target: a value of 0 each, for users of their own.
        absent = self.num_asked - len(self)
        all_Q = np.concatenate([ndcg_Q, np.zeros(absent)])
        user_Q = np.concatenate([self.user_Q, -1 - np.arange(absent)])
        (interval,) = mean_intervals(user_Q, all_Q[:, None], seed=seed)
        figures |= {f"ndcg@{k}": float(all_Q.mean()), f"ndcg@{k}_ci": list(interval)}
        if hit_Q.any():
            (interval,) = mean_intervals(self.user_Q[hit_Q], ndcg_Q[hit_Q, None], seed=seed)
            figures |= {f"ndcg@{k}_hits": float(ndcg_Q[hit_Q].mean()), f"ndcg@{k}_hits_ci": list(interval)}
        if orders is not None:
            same = [tuple(o[:k]) == one.ids[:k] for o, one in zip(orders, self.requests, strict=True)]
            figures["changed"] = 1.0 - sum(same) / len(same)
        return figures

    def _ordered(self, orders: Sequence[Sequence[Any]] | None) -> Sequence[Sequence[float]]:
        """Gains of each list in the order given."""
        if orders is None:
            return self.gains
        ordered = []
        for request, gain_K, order in zip(self.requests, self.gains, orders, strict=True):
            gain_of = dict(zip(request.ids, gain_K, strict=True))
            if len(order) != len(gain_of) or set(order) != set(gain_of):
                raise ValueError(f"order {shown(list(order))} is no permutation of the {len(gain_of)} candidates")
            ordered.append([gain_of[item] for item in order])
        return ordered
