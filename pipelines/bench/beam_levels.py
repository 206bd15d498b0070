"""Where the time of a generated list goes, and what drafting codes ahead could save at best.

Speculative decoding guesses several levels at once and has the decoder verify them in one pass. The pass is timed over
the codes that the search ends with, as if a guess cost nothing and every one were right; its beams are the rows that
the search decodes from the second level on, and as many of the first.

On two busy cores, 16 requests at once and a million items, that pass took .85 to .91 of the time of the levels and the
search together, and encoding the histories as long again: a guess that is free and always right would save 5 to 8 % of
a request, so that drafting is left out.

Suffixes: B = requests, W = beams, L = levels, N = B · W rows, H = heads, E = head width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recsys.code_decoder import CodeDecoder, CodeDecoding, StateReader
from recsys.index.code_trie import CodeTrie
from recsys.retrieval.beam_search import BeamHits
from recsys.user_state import UserStates

__all__ = ["TimedDecoding", "found_codes", "verify"]


@dataclass
class TimedDecoding:
    """A decoding that notes how long each level takes."""

    decoding: CodeDecoding
    seconds: list[float] = field(default_factory=list)

    def logits(self, parent_BW: Tensor | None, code_BW: Tensor | None) -> Tensor:
        """See :meth:`recsys.code_decoder.CodeDecoding.logits`."""
        start = time.perf_counter()
        logit_BWK = self.decoding.logits(parent_BW, code_BW)
        self.seconds.append(time.perf_counter() - start)
        return logit_BWK


def found_codes(trie: CodeTrie, hits: BeamHits) -> Tensor:
    """[B, W, L] codes of the items found; those of item 0 in unfilled places."""
    return trie.codes()[hits.ids_QK.clamp_min(0)]


def verify(decoder: CodeDecoder, states: UserStates, query_BD: Tensor, code_BWL: Tensor) -> list[Tensor]:
    """Per level [N, K] logits of all prefixes of some codes, in one pass."""
    reader = StateReader(states)

    def read(layer: int, query: Tensor) -> Tensor:
        """[N, L, H, E], every request's beams and levels as so many beams."""
        query_BXHE = query.reshape(states.num_users, -1, *query.shape[2:])
        return reader(layer, query_BXHE).reshape(query.shape)

    query_ND = query_BD.repeat_interleave(code_BWL.shape[1], 0)
    with torch.no_grad():
        logits: list[Tensor] = decoder(query_ND, code_BWL.flatten(0, 1), read, alike=code_BWL.shape[1])
    return logits
