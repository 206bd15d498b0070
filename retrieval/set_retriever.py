"""The retriever that scores the whole catalogue by sets of codes, each of which a learned query reads off the history.

Suffixes: B = users, I = items, C = items of a user, J = codes of an item, K = codes of a codebook,
E = exclusions, N = allowed items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.code_decoder import StateReader
from recsys.index.hits import Hits
from recsys.model import UnifiedModel
from recsys.retrieval.code_catalogue import CodeCatalogue
from recsys.user_state import UserStates

__all__ = ["SetRetriever"]


class SetRetriever:
    """score(i) = mean over the set of log p(code of i), in nats; every item is scored.

    Args:
        model: with a head of sets of codes; in eval mode.
    """

    name = "set"
    reads_cache = True
    lists_only = False
    sources: tuple[str, ...] = ()

    def __init__(self, model: UnifiedModel) -> None:
        if model.set_codes is None:
            raise ValueError("this model predicts no sets of codes; train it with such codes of the items")
        self.model, self.head = model, model.set_codes
        self.catalogue = CodeCatalogue(model.codes.of("set_codes"))

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

        Raises:
            ValueError: the states hold no keys and values.
        """
        return self.catalogue.search(self._predict(states, at_B, surface_B), k, exclude_QE, allow_N)

    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue."""
        return self.catalogue.scores(self._predict(states, at_B, surface_B))

    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 scores of some items; padded places (−1) mean nothing."""
        return self.catalogue.scores_of(self._predict(states, at_B, surface_B), item_BC)

    @torch.no_grad()
    def _predict(self, states: UserStates, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[J, B, K] log-probabilities of every code."""
        if not states.cache:
            raise ValueError("the states hold no keys and values; encode with keep_cache=True")
        logp_JBK: Tensor = self.head(self.model.query(states, at_B, surface_B), StateReader(states))
        return logp_JBK
