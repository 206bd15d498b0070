"""How often the decoder of semantic IDs names the right code of a level, after right and after wrong codes.

Errors that are made in the first codes cannot be made good by the later ones: the share of right codes after a wrong
prefix says how far they are (TIGER's third code is right 77 % of the time after a right prefix and .6 % after a wrong
one, says BARGE, arXiv 2607.21028).

Suffixes: N = requests, L = levels, K = codes of a level, D = width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.code_children import CodeChildren
from recsys.code_decoder import CodeDecoder, HistoryReader

__all__ = ["CodeAccuracy", "code_accuracy"]


@dataclass(frozen=True, slots=True)
class CodeAccuracy:
    """Counts of requests by level; those of batches add up."""

    right_L: tuple[int, ...]
    """Whose most probable code, given the target's codes before it, is the target's."""
    strayed_L: tuple[int, ...]
    """Whose own most probable codes before it are not all the target's."""
    right_strayed_L: tuple[int, ...]
    """Those of them whose most probable code, given their own codes before it, is the target's all the same."""
    num_requests: int

    def __add__(self, other: CodeAccuracy) -> CodeAccuracy:
        def added(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(a + b for a, b in zip(one, two, strict=True))

        return CodeAccuracy(
            added(self.right_L, other.right_L),
            added(self.strayed_L, other.strayed_L),
            added(self.right_strayed_L, other.right_strayed_L),
            self.num_requests + other.num_requests,
        )

    def figures(self) -> dict[str, float]:
        """Shares by name; one that nothing was counted for is absent.

        >>> CodeAccuracy((3, 2), (0, 1), (0, 1), 4).figures()
        {'level1_accuracy': 0.75, 'level2_accuracy': 0.5, 'level2_accuracy_after_wrong': 1.0}
        """
        found = {}
        for place, (right, strayed, late) in enumerate(
            zip(self.right_L, self.strayed_L, self.right_strayed_L, strict=True), start=1
        ):
            if self.num_requests:
                found[f"level{place}_accuracy"] = right / self.num_requests
            if strayed:
                found[f"level{place}_accuracy_after_wrong"] = late / strayed
        return found


@torch.no_grad()
def code_accuracy(
    decoder: CodeDecoder,
    query_ND: Tensor,
    code_NL: Tensor,
    read: HistoryReader,
    children: CodeChildren | None = None,
) -> CodeAccuracy:
    """Compare a decoder's most probable codes with those of the targets.

    Args:
        decoder: in eval mode.
        query_ND: [N, D] query vectors of dense retrieval.
        code_NL: [N, L] int64 codes of the targets, all of them in the catalogue.
        read: attention of [N, L, H, E] queries to the history.
        children: of a decoder that was trained among the codes that continue a prefix: it is asked for those alone.
    """
    right, strayed, right_strayed = [], [], []
    own_NL = torch.zeros_like(code_NL)
    astray_N = torch.zeros_like(code_NL[:, 0], dtype=torch.bool)
    own_prefix_N = true_prefix_N = torch.zeros_like(code_NL[:, 0])
    given_true = decoder(query_ND, code_NL, read)
    for level, logit_NK in enumerate(given_true):
        # The first level has no codes before it. Codes of the level itself and of later ones are not read.
        own_NK = decoder(query_ND, own_NL, read)[level] if level else logit_NK
        code_N = code_NL[:, level]
        if children is not None:
            logit_NK = children.masked(level, logit_NK, true_prefix_N)
            own_NK = children.masked(level, own_NK, own_prefix_N)
        own_N = own_NK.argmax(1)
        right.append(int((logit_NK.argmax(1) == code_N).sum()))
        strayed.append(int(astray_N.sum()))
        right_strayed.append(int((astray_N & (own_N == code_N)).sum()))
        if children is not None:
            true_prefix_N = children.follow(level, true_prefix_N, code_N)
            own_prefix_N = children.follow(level, own_prefix_N, own_N)
        own_NL[:, level] = own_N
        astray_N = astray_N | (own_N != code_N)
    return CodeAccuracy(tuple(right), tuple(strayed), tuple(right_strayed), len(code_NL))
