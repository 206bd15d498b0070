"""The retriever that needs no training: neighbours of a user's last positive items in the item graph.

Suffixes: B = users, M = recent items, I = items, K = hits, E = exclusions, N = allowed items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from recsys.index.hits import Hits
from recsys.index.item_graph import ItemGraph
from recsys.index.pair_values import pair_values

__all__ = ["HasRecent", "MemoryRetriever", "RecentItems"]


class HasRecent(Protocol):
    """Anything that knows the last positive items of its users, as user states do."""

    @property
    def recent_BM(self) -> Tensor: ...


class RecentItems:
    """Just the recent items of users, for retrieving without a model."""

    def __init__(self, recent_BM: Tensor) -> None:
        """Keep [B, M] int64 items, newest first, -1 padded; see :func:`recsys.recent.recent_positives`."""
        self.recent_BM = recent_BM

    @property
    def num_users(self) -> int:
        return len(self.recent_BM)

    def select(self, rows: Tensor) -> RecentItems:
        """Those of some users, in the order of ``rows``."""
        return RecentItems(self.recent_BM[rows])


class MemoryRetriever:
    """score(i) = Σ_j decay^j Σ_r b_r · f_r(h_j -> i) over the last positive items h_0 (newest), h_1, …

    After the training-free rule of arXiv 2605.07125, cut to the best neighbours of each item and relation. Items that
    no recent item has as a neighbour are not returned; a user without positive events gets nothing.
    """

    reads_cache = False
    lists_only = False
    sources: tuple[str, ...] = ()

    def __init__(
        self,
        graph: ItemGraph,
        weights: Mapping[str, float] | None = None,
        decay: float = 0.6,
        name: str = "memory",
        recent: int = 4,
    ) -> None:
        """Search a graph.

        Args:
            graph: of training events' transitions for validation and test, of all known ones otherwise.
            weights: per relation, 0 or absent = off; None = transitions 1, texts 2.
            decay: of each item further back.
            name: as in flags, JSON and Python.
            recent: items that count (m).
        """
        self.graph, self.name = graph, name
        self.weights = graph.default_weights if weights is None else dict(weights)
        self.decay, self.recent = decay, recent

    def search(
        self,
        states: HasRecent,
        k: int,
        *,
        at_B: Tensor | None = None,
        surface_B: Tensor | None = None,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> Hits:
        """The k best items of each user, fewer where there are fewer neighbours; see :class:`Retriever`.

        Time and surface of the request change nothing.
        """
        return self.graph.search(
            states.recent_BM[:, : self.recent],
            k,
            weights=self.weights,
            decay=self.decay,
            exclude_QE=exclude_QE,
            allow_N=allow_N,
        )

    def parts(self, recent_M: Tensor, item: int) -> Tensor:
        """[M, R] the terms of one item by recent item and relation of the graph.

        Args:
            recent_M: [M] int64 last positive items, newest first, -1 padded.
        """
        weight_R = torch.tensor([self.weights.get(name, 0.0) for name in self.graph.relations])
        decay_M1 = self.decay ** torch.arange(len(recent_M))[:, None]
        value_MR = pair_values(self.graph, recent_M, torch.full_like(recent_M, item))
        return value_MR * (decay_M1 * weight_R).to(value_MR.device)

    def scores(self, states: HasRecent, *, at_B: Tensor | None = None, surface_B: Tensor | None = None) -> Tensor:
        """[B, I] float32 scores; 0 for an item that is nobody's neighbour."""
        return self.graph.scores(states.recent_BM[:, : self.recent], self.weights, self.decay)
