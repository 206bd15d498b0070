"""What retrievers share whose head predicts all codes of an item at once: the whole catalogue is scored exactly.

Suffixes: B = users, I = items, C = items of a user, J = codes of an item, K = codes of a codebook,
E = exclusions, N = allowed items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from recsys.index.hits import Hits
from recsys.retrieval.code_catalogue import CodeCatalogue
from recsys.user_state import UserStates

__all__ = ["CatalogueRetriever"]


class CatalogueRetriever(ABC):
    """score(i) = mean over codes of log p(code of i), in nats; every item is scored."""

    name: str
    reads_cache: bool
    lists_only = False
    sources: tuple[str, ...] = ()

    def __init__(self, catalogue: CodeCatalogue) -> None:
        self.catalogue = catalogue

    @abstractmethod
    def log_probabilities(self, states: UserStates, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[J, B, K] log-probabilities of every code."""

    def search(
        self,
        states: UserStates,
        k: int,
        *,
        at_B: Tensor,
        surface_B: Tensor,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> Hits:
        """The k best items of each user; see :class:`recsys.retrieval.protocol.Retriever`."""
        return self.catalogue.search(self.log_probabilities(states, at_B, surface_B), k, exclude_QE, allow_N)

    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue."""
        return self.catalogue.scores(self.log_probabilities(states, at_B, surface_B))

    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 scores of some items; padded places (−1) mean nothing."""
        return self.catalogue.scores_of(self.log_probabilities(states, at_B, surface_B), item_BC)
