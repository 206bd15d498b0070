"""The retriever that generates semantic IDs: a beam search of the model's decoder over the code trie.

Suffixes: B = users, I = items, K = hits, E = exclusions, N = allowed items.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recsys.index.code_trie import CodeTrie
from recsys.model import UnifiedModel
from recsys.retrieval.beam_config import BeamConfig, Normalise
from recsys.retrieval.beam_search import BeamHits, beam_search
from recsys.user_state import UserStates

__all__ = ["GenerativeRetriever"]


class GenerativeRetriever:
    """score(i) = log p(codes of i), in nats.

    Args:
        model: with a decoder of codes; in eval mode.
        trie: of the codes it was trained with.
        config: of the search; its widths are raised to k where k is larger. None = the usual widths, probabilities
            normalised as in the model's training.
    """

    name = "generative"
    reads_cache = True
    lists_only = True
    sources: tuple[str, ...] = ()

    def __init__(self, model: UnifiedModel, trie: CodeTrie, config: BeamConfig | None = None) -> None:
        if tuple(model.config.code_sizes) != trie.sizes:
            raise ValueError(
                f"the model generates codes of sizes {tuple(model.config.code_sizes)} and the trie holds {trie.sizes}; "
                "give the trie of the codes it was trained with"
            )
        if trie.num_items != model.config.num_items:
            raise ValueError(f"the trie holds {trie.num_items} items and the model knows {model.config.num_items}")
        self.model, self.trie = model, trie
        trained: Normalise = "children" if model.config.code_children else "all"
        self.config = BeamConfig(normalise=trained) if config is None else config

    def search(
        self,
        states: UserStates,
        k: int,
        *,
        at_B: Tensor,
        surface_B: Tensor,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> BeamHits:
        """The k most probable items within the beams; see :class:`recsys.retrieval.protocol.Retriever`.

        Of equal scores, those of one leaf among them, the first in the trie comes first.
        """
        config = replace(self.config, widths=tuple(max(width, k) for width in self.config.widths))
        decoding = self.model.decode(states, at_B, surface_B)
        return beam_search(self.trie, decoding, states.num_users, k, config, exclude_BE=exclude_QE, allow_N=allow_N)

    @torch.no_grad()
    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 log-probabilities of the whole catalogue, every prefix decoded."""
        config = BeamConfig(widths=(self.trie.num_items,), normalise=self.config.normalise)
        decoding = self.model.decode(states, at_B, surface_B)
        hits = beam_search(self.trie, decoding, states.num_users, self.trie.num_items, config)
        score_BI = torch.full((states.num_users, self.trie.num_items + 1), -torch.inf)
        return score_BI.scatter(1, hits.ids_QK % (self.trie.num_items + 1), hits.scores_QK)[:, :-1]
