"""What retrievers share whose head predicts all codes of an item at once.

The whole catalogue is scored exactly or, where it is very large, what a walk over items with codes alike meets
(:mod:`recsys.retrieval.code_walk`).

Suffixes: B = users, I = items, C = items of a user, J = codes of an item, K = codes of a codebook,
E = exclusions, N = allowed items, S = users whose walk met too little.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from recsys.index.code_neighbours import CodeNeighbours
from recsys.index.hits import Hits
from recsys.index.protocol import check_lists
from recsys.retrieval.code_catalogue import CodeCatalogue
from recsys.retrieval.code_walk import CodeWalkConfig, code_walk
from recsys.user_state import UserStates

__all__ = ["CatalogueRetriever"]


class CatalogueRetriever(ABC):
    """score(i) = mean over codes of log p(code of i), in nats; every item is scored.

    Args:
        catalogue: the codes.
        neighbours: of these codes, for a search that does not score every item; None = it does.
        walk: how that search goes.
    """

    name: str
    reads_cache: bool
    lists_only = False
    sources: tuple[str, ...] = ()

    def __init__(
        self,
        catalogue: CodeCatalogue,
        neighbours: CodeNeighbours | None = None,
        walk: CodeWalkConfig | None = None,
    ) -> None:
        if neighbours is not None and neighbours.num_items != len(catalogue.code_IJ):
            raise ValueError(
                f"the graph of code neighbours holds {neighbours.num_items} items and the catalogue "
                f"{len(catalogue.code_IJ)}; build it for these codes"
            )
        self.catalogue, self.neighbours = catalogue, neighbours
        self.walk = CodeWalkConfig() if walk is None else walk

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
        """The k best items of each user; see :class:`recsys.retrieval.protocol.Retriever`.

        A walk that met fewer than k that may be returned is followed by a search of all items for its user.

        Raises:
            ValueError: a log-probability is a NaN; or k, exclusions or the allow list break the protocol.
        """
        logp_JBK = self.log_probabilities(states, at_B, surface_B)
        is_bad_B = logp_JBK.isnan().any(2).any(0).tolist()
        if any(is_bad_B):
            row = is_bad_B.index(True)
            raise ValueError(f"log-probabilities of codes, request {row}, hold a NaN; check the model's weights")
        few_allowed = allow_N is not None and len(allow_N) <= self.walk.exact_below
        if self.neighbours is None or few_allowed:
            return self.catalogue.search(logp_JBK, k, exclude_QE, allow_N)
        check_lists(logp_JBK.shape[1], k, exclude_QE, allow_N, len(self.catalogue.code_IJ))
        hits: Hits = code_walk(
            self.neighbours,
            self.catalogue.code_IJ,
            logp_JBK,
            k,
            self.walk,
            exclude_BE=exclude_QE,
            allow_N=allow_N,
            gone_I=self.catalogue.gone_I,
        )
        short_S = (hits.ids_QK[:, -1] < 0).nonzero().flatten()
        if len(short_S):
            exclude_SE = None if exclude_QE is None else exclude_QE[short_S]
            rest = self.catalogue.search(logp_JBK[:, short_S], k, exclude_SE, allow_N)
            ids_QK = hits.ids_QK.index_copy(0, short_S, rest.ids_QK)
            hits = Hits(ids_QK, hits.scores_QK.index_copy(0, short_S, rest.scores_QK))
        return hits

    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue."""
        return self.catalogue.scores(self.log_probabilities(states, at_B, surface_B))

    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 scores of some items; padded places (−1) mean nothing."""
        return self.catalogue.scores_of(self.log_probabilities(states, at_B, surface_B), item_BC)
