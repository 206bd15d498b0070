"""The retriever that scores the whole catalogue by sets of codes, each of which a learned query reads off the history.

Suffixes: B = users, J = codes of an item, K = codes of a codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.code_decoder import StateReader
from recsys.index.code_neighbours import CodeNeighbours
from recsys.model import UnifiedModel
from recsys.retrieval.catalogue_retriever import CatalogueRetriever
from recsys.retrieval.code_catalogue import CodeCatalogue
from recsys.retrieval.code_walk import CodeWalkConfig
from recsys.user_state import UserStates

__all__ = ["SetRetriever"]


class SetRetriever(CatalogueRetriever):
    """Codes predicted by a query each.

    Args:
        model: with a head of sets of codes; in eval mode.
        gone_I: [I] bool, items that no search returns; None = all may be.
        neighbours, walk: for catalogues too large to score whole; see :class:`CatalogueRetriever`.
    """

    name = "set"
    reads_cache = True

    def __init__(
        self,
        model: UnifiedModel,
        gone_I: Tensor | None = None,
        neighbours: CodeNeighbours | None = None,
        walk: CodeWalkConfig | None = None,
    ) -> None:
        if model.set_codes is None:
            raise ValueError("this model predicts no sets of codes; train it with such codes of the items")
        super().__init__(CodeCatalogue(model.codes.of("set_codes"), gone_I), neighbours, walk)
        self.model, self.head = model, model.set_codes

    @torch.no_grad()
    def log_probabilities(self, states: UserStates, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[J, B, K] log-probabilities of every code.

        Raises:
            ValueError: the states hold no keys and values.
        """
        if not states.cache:
            raise ValueError("the states hold no keys and values; encode with keep_cache=True")
        logp_JBK: Tensor = self.head(self.model.query(states, at_B, surface_B), StateReader(states))
        return logp_JBK
