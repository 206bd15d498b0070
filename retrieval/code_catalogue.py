"""The codes of a whole catalogue, scored exactly by log-probabilities of every code.

Suffixes: B = users, I = items, C = items of a user, J = codes of an item, K = codes of a codebook, or hits,
E = exclusions, N = allowed items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.index.hits import Hits
from recsys.index.protocol import check_lists
from recsys.kernels.topk import topk_smaller_id
from recsys.parallel_codes import code_scores

__all__ = ["CodeCatalogue"]

_SCORES_AT_ONCE = 1 << 23


class CodeCatalogue:
    """score(i) = mean over codes of log p(code of i), in nats; every item is scored.

    Args:
        code_IJ: [I, J] codes of the catalogue, as the model holds them.
        gone_I: [I] bool, items that no search returns; None = all may be.
    """

    def __init__(self, code_IJ: Tensor, gone_I: Tensor | None = None) -> None:
        self.code_IJ, self.gone_I = code_IJ, gone_I

    def scores(self, logp_JBK: Tensor) -> Tensor:
        """[B, I] float32 scores of all items."""
        return code_scores(logp_JBK.float(), self.code_IJ)

    def scores_of(self, logp_JBK: Tensor, item_BC: Tensor) -> Tensor:
        """[B, C] float32 scores of some items of each user; padded places (−1) mean nothing."""
        code_JBC = self.code_IJ[item_BC.clamp_min(0)].long().permute(2, 0, 1)
        return logp_JBK.float().gather(2, code_JBC).mean(0)

    def search(self, logp_JBK: Tensor, k: int, exclude_QE: Tensor | None, allow_N: Tensor | None) -> Hits:
        """The k best items of each user; see :class:`recsys.retrieval.protocol.Retriever`."""
        num_users = logp_JBK.shape[1]
        check_lists(num_users, k, exclude_QE, allow_N, len(self.code_IJ))
        code_IJ = self.code_IJ if allow_N is None else self.code_IJ[allow_N]
        id_I = torch.arange(len(self.code_IJ), device=logp_JBK.device) if allow_N is None else allow_N
        step = max(1, _SCORES_AT_ONCE // max(1, len(code_IJ)))
        parts = []
        for low in range(0, max(1, num_users), step):
            score_QI = code_scores(logp_JBK[:, low : low + step].float(), code_IJ)
            if self.gone_I is not None:
                score_QI.masked_fill_(self.gone_I if allow_N is None else self.gone_I[allow_N], -torch.inf)
            if exclude_QE is not None:
                row_X, place_X = (exclude_QE[low : low + step] >= 0).nonzero(as_tuple=True)
                out_X = exclude_QE[low : low + step][row_X, place_X]
                column_X = torch.searchsorted(id_I, out_X).clamp_max(max(0, len(id_I) - 1))
                there_X = id_I[column_X] == out_X if len(id_I) else torch.zeros_like(out_X, dtype=torch.bool)
                score_QI[row_X[there_X], column_X[there_X]] = -torch.inf
            parts.append(topk_smaller_id(score_QI, id_I.expand_as(score_QI), k))
        return Hits(torch.cat([ids for _, ids in parts]), torch.cat([scores for scores, _ in parts]))
