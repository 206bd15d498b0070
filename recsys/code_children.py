"""Which codes may follow the prefixes of an item's semantic ID: for losses and choices among those codes alone.

Constrained sequence learning (MSCGRec, arXiv 2602.03713): the softmax of a level runs over the codes that continue the
true prefix in the catalogue, and the model spends nothing on learning which codes exist.

Suffixes: N = rows, I = items, L = levels, K = codes of a level, C = children of a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys.index.code_trie import CodeTrie, TrieLevel

__all__ = ["CodeChildren"]


@dataclass(frozen=True, slots=True)
class CodeChildren:
    """The prefixes of a catalogue's semantic IDs and the codes that continue each.

    A prefix is known by its number among those of its length, in their order; the empty one is 0.
    """

    sizes: tuple[int, ...]
    levels: tuple[TrieLevel, ...]
    prefix_IL: Tensor
    """[I, L] int64, the prefix of each item before each of its codes."""
    place_I: Tensor
    """[I] int64, the place of each item in the order of the codes: those below a node are a run of places."""

    @classmethod
    def of(cls, codes_IL: Tensor, sizes: Sequence[int]) -> CodeChildren:
        """Sort the codes of a catalogue.

        Raises:
            ValueError: no items, another number of levels than sizes, or a code out of range.
        """
        trie = CodeTrie.build(codes_IL.cpu(), sizes)
        place_I = trie.place_I.long()
        prefix_IL = torch.zeros(trie.num_items, trie.num_levels, dtype=torch.int64)
        for number, level in enumerate(trie.levels[:-1]):
            prefix_IL[:, number + 1] = level.node_at(place_I)
        return cls(trie.sizes, trie.levels, prefix_IL, place_I).to(codes_IL.device)

    def to(self, device: torch.device) -> CodeChildren:
        """The same on another device."""
        levels = tuple(level.to(device) for level in self.levels)
        return replace(self, levels=levels, prefix_IL=self.prefix_IL.to(device), place_I=self.place_I.to(device))

    def masked(self, level: int, logit_NK: Tensor, prefix_N: Tensor) -> Tensor:
        """Logits of the codes that continue prefixes; −inf for all others, so that a softmax leaves them out.

        Args:
            level: of the logits, from 0.
            logit_NK: [N, K] logits of its codes.
            prefix_N: [N] int64 numbers of prefixes: ``prefix_IL[item_N, level]`` for the true ones.
        """
        child_NC, code_NC = self.children(level, prefix_N)
        size = self.sizes[level]
        allowed_NK = torch.zeros(len(prefix_N), size + 1, dtype=torch.bool, device=logit_NK.device)
        allowed_NK.scatter_(1, code_NC.masked_fill(child_NC < 0, size), True)
        return logit_NK.masked_fill(~allowed_NK[:, :size], -torch.inf)

    def follow(self, level: int, prefix_N: Tensor, code_N: Tensor) -> Tensor:
        """[N] int64 number of each prefix with one more code, −1 where the catalogue has none such.

        Args:
            level: of the code, from 0.
            prefix_N: [N] int64 numbers of prefixes, −1 = none. code_N: [N] codes.
        """
        child_NC, code_NC = self.children(level, prefix_N)
        return child_NC.masked_fill(code_NC != code_N[:, None], -1).amax(1)

    def children(self, level: int, prefix_N: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C] int64 nodes that continue prefixes, −1 = none, and [N, C] int64 their codes.

        Args:
            level: of the codes, from 0.
            prefix_N: [N] int64 numbers of prefixes, −1 = none.
        """
        child_1NC, code_1NC = self.levels[level].children(prefix_N[None])
        return child_1NC[0], code_1NC[0]
