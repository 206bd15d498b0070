"""The codes of a whole catalogue, scored exactly by log-probabilities of every code.

Items are scored block by block: a row of the table holds the log-probabilities of one code for all users, and the score
of an item is the sum of as many rows as it has codes. No [users, items] matrix is ever whole in a search, and with 16
users 200,000 items of 16 codes take an eighth of the time of gathering code after code
(:func:`recsys.parallel_codes.code_scores`, to which all scores here are equal bit by bit); with 64 users a twentieth.

Suffixes: B = users, I = items, C = items of a user, J = codes of an item, K = codes of a codebook, or hits,
E = exclusions, N = allowed items, T = items of a block, X = rows of the table, J · K of them, P = pairs of a user and
an item.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.index.hits import Hits
from recsys.index.protocol import check_lists, no_hits
from recsys.kernels.topk import largest, topk_smaller_id

__all__ = ["CodeCatalogue"]

_SCORES_AT_ONCE = 1 << 21
_USERS_AT_ONCE = 64
"""So that the table of 16 codebooks of 256 codes, a megabyte, stays in the processor's cache."""


class CodeCatalogue:
    """score(i) = mean over codes of log p(code of i), in nats; every item is scored.

    Args:
        code_IJ: [I, J] codes of the catalogue, as the model holds them.
        gone_I: [I] bool, items that no search returns; None = all may be.
    """

    def __init__(self, code_IJ: Tensor, gone_I: Tensor | None = None) -> None:
        self.code_IJ, self.gone_I = code_IJ, gone_I

    @torch.no_grad()
    def scores(self, logp_JBK: Tensor) -> Tensor:
        """[B, I] float32 scores of all items."""
        num_users, num_items = logp_JBK.shape[1], len(self.code_IJ)
        score_BI = torch.empty(num_users, num_items, device=logp_JBK.device)
        for low in range(0, num_users, _USERS_AT_ONCE):
            part_BI = score_BI[low : low + _USERS_AT_ONCE]
            for first, score_BT in self._blocks(logp_JBK[:, low : low + _USERS_AT_ONCE], None):
                part_BI[:, first : first + score_BT.shape[1]] = score_BT
        return score_BI

    @torch.no_grad()
    def scores_of(self, logp_JBK: Tensor, item_BC: Tensor) -> Tensor:
        """[B, C] float32 scores of some items of each user; padded places (−1) mean nothing."""
        logp_JBK, item_BC = logp_JBK.float(), item_BC.clamp_min(0)
        score_BC = torch.zeros(item_BC.shape, device=item_BC.device)
        for logp_BK, code_I in zip(logp_JBK, self.code_IJ.T, strict=True):
            score_BC += logp_BK.gather(1, code_I[item_BC].long())
        return score_BC / len(logp_JBK)

    @torch.no_grad()
    def search(self, logp_JBK: Tensor, k: int, exclude_QE: Tensor | None, allow_N: Tensor | None) -> Hits:
        """The k best items of each user; see :class:`recsys.retrieval.protocol.Retriever`."""
        num_users = logp_JBK.shape[1]
        check_lists(num_users, k, exclude_QE, allow_N, len(self.code_IJ))
        if not num_users or (allow_N is not None and not len(allow_N)):
            return no_hits(num_users, k, logp_JBK.device)
        parts = []
        for low in range(0, num_users, _USERS_AT_ONCE):
            high = low + _USERS_AT_ONCE
            exclude_BE = None if exclude_QE is None else exclude_QE[low:high]
            parts.append(self._best(logp_JBK[:, low:high], k, exclude_BE, allow_N))
        return Hits(torch.cat([ids for _, ids in parts]), torch.cat([scores for scores, _ in parts]))

    def _best(
        self, logp_JBK: Tensor, k: int, exclude_BE: Tensor | None, allow_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, k] scores and ids of a few users. Ids rise from block to block, so that once k are found an item of a
        later block has to score above the k-th."""
        score_BK, id_BK = None, None
        for first, score_BT in self._blocks(logp_JBK, allow_N):
            id_T = torch.arange(first, first + score_BT.shape[1], device=logp_JBK.device)
            id_T = id_T if allow_N is None else allow_N[id_T]
            if self.gone_I is not None:
                score_BT.masked_fill_(self.gone_I[id_T], -torch.inf)
            if exclude_BE is not None:
                _exclude(score_BT, id_T, exclude_BE)
            if score_BK is None or id_BK is None:
                floor_B1 = largest(score_BT, min(k, score_BT.shape[1]))[0].amin(1, keepdim=True)
                score_BC, place_BC = _padded(score_BT, (score_BT >= floor_B1) & (score_BT > -torch.inf))
                score_BK, id_BK = topk_smaller_id(score_BC, id_T[place_BC], k)
                continue
            score_BC, place_BC = _padded(score_BT, score_BT > score_BK[:, -1:])
            if score_BC.shape[1]:
                both = torch.cat([score_BK, score_BC], 1), torch.cat([id_BK, id_T[place_BC]], 1)
                score_BK, id_BK = topk_smaller_id(*both, k)
        assert score_BK is not None and id_BK is not None
        return score_BK, id_BK

    def _blocks(self, logp_JBK: Tensor, allow_N: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """Yield the first place and [B, T] float32 scores of blocks of items, or of allowed items, in order."""
        num_codes, num_users, size = logp_JBK.shape
        if num_users == 1:  # sums of single numbers take longer than those of pairs
            logp_JBK = logp_JBK.expand(-1, 2, -1)
        table_XB = logp_JBK.float().transpose(1, 2).reshape(num_codes * size, -1).contiguous()
        first_J = torch.arange(num_codes, device=logp_JBK.device, dtype=self.code_IJ.dtype) * size
        num_items = len(self.code_IJ) if allow_N is None else len(allow_N)
        step = max(1, _SCORES_AT_ONCE // num_users)
        for low in range(0, num_items, step):
            code_TJ = self.code_IJ[low : low + step] if allow_N is None else self.code_IJ[allow_N[low : low + step]]
            score_TB = F.embedding_bag(code_TJ + first_J, table_XB, mode="sum")
            yield low, (score_TB[:, :num_users] / num_codes).T.contiguous()


def _exclude(score_BT: Tensor, id_T: Tensor, exclude_BE: Tensor) -> None:
    """Set the scores of excluded items to −inf, in place."""
    user_P, place_P = (exclude_BE >= 0).nonzero(as_tuple=True)
    out_P = exclude_BE[user_P, place_P]
    column_P = torch.searchsorted(id_T, out_P).clamp_max(len(id_T) - 1)
    there_P = id_T[column_P] == out_P
    score_BT[user_P[there_P], column_P[there_P]] = -torch.inf


def _padded(score_BT: Tensor, chosen_BT: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C] chosen scores of each user, −inf where it has fewer, and their columns."""
    user_P, column_P = chosen_BT.nonzero(as_tuple=True)
    count_B = torch.bincount(user_P, minlength=len(score_BT))
    place_P = torch.arange(len(user_P), device=user_P.device) - (count_B.cumsum(0) - count_B)[user_P]
    width = int(count_B.max())
    score_BC = score_BT.new_full((len(score_BT), width), -torch.inf)
    column_BC = column_P.new_zeros(len(score_BT), width)
    score_BC[user_P, place_P] = score_BT[user_P, column_P]
    column_BC[user_P, place_P] = column_P
    return score_BC, column_BC
