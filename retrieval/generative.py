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
from recsys.retrieval.beam_search import BeamHits, beam_search, child_scores
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
        score_BI = torch.full((states.num_users, self.trie.num_items + 1), -torch.inf, device=at_B.device)
        return score_BI.scatter(1, hits.ids_QK % (self.trie.num_items + 1), hits.scores_QK)[:, :-1]

    @torch.no_grad()
    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 log-probabilities of some items, each prefix decoded; padded places (−1) mean nothing."""
        known_BC = item_BC.clamp_min(0)
        code_BCL = self.model.codes.of("codes")[known_BC].long()
        place_BC = self.trie.place_I[known_BC].long()
        decoding = self.model.decode(states, at_B, surface_B)
        node_BW = torch.zeros(len(item_BC), 1, dtype=torch.int64, device=item_BC.device)
        score_BW = torch.zeros(node_BW.shape, device=item_BC.device)
        parent_BC: Tensor | None = None
        for number, level in enumerate(self.trie.levels):
            logit_BWK = decoding.logits(parent_BC, None if parent_BC is None else code_BCL[..., number - 1])
            children = level.spread(node_BW)
            score_T = child_scores(logit_BWK.float(), score_BW, children, self.config)
            child_BC = level.node_at(place_BC)
            slot_BC = child_BC - level.child_M1[node_BW] if level.table_MK is None else code_BCL[..., number]
            score_BW = score_T[children.first_X1[:-1].view(node_BW.shape) + slot_BC]
            own_C = torch.arange(item_BC.shape[1], device=item_BC.device)
            parent_BC = torch.zeros_like(item_BC) if number == 0 else own_C.expand_as(item_BC)
            node_BW = child_BC
        return score_BW
