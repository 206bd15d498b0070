"""The head that predicts all codes of an item at once, each by itself, and scores the whole catalogue exactly.

Long semantic IDs of independent codes (RPG, arXiv 2506.05781): code j has a query of its own, a residual layer on the
query of dense retrieval, and a softmax over cosines to the codebook's vectors. The score of an item is the mean of the
log-probabilities of its codes, one gather per code.

Suffixes: N = rows, B = requests, D = width, J = codes of an item, K = codes of a codebook, I = items.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.dropout import Dropout
from recsys.model_config import ModelConfig

__all__ = ["Codebooks", "ParallelCodes", "code_scores"]

_START_TEMPERATURE, _MAX_SCALE = 0.05, 100.0


class Codebooks(nn.Module):
    """A vector for every code, and for every codebook a query of its own and a softmax over cosines to its vectors."""

    def __init__(self, sizes: tuple[int, ...], config: ModelConfig) -> None:
        super().__init__()
        self.sizes, dim = sizes, config.dim
        num, largest = len(sizes), max(sizes)
        self.down_JDD = nn.Parameter(torch.randn(num, dim, dim) * dim**-0.5)
        self.up_JDD = nn.Parameter(torch.zeros(num, dim, dim))
        self.norm = nn.LayerNorm(dim)
        self.codes_JKD = nn.Parameter(torch.randn(num, largest, dim) * 0.02)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(_START_TEMPERATURE)))
        self.dropout = Dropout(config.code_dropout)
        used_JK = torch.arange(largest) < torch.tensor(sizes)[:, None]
        self.register_buffer("unused_JK", ~used_JK, persistent=False)

    unused_JK: Tensor

    def queries(self, query_ND: Tensor) -> Tensor:
        """[J, N, D] queries to every codebook: a residual layer each on query vectors of dense retrieval."""
        z_ND = self.norm(query_ND)
        hidden_JND = F.silu(z_ND @ self.down_JDD)
        query_JND: Tensor = z_ND + self.dropout(hidden_JND) @ self.up_JDD
        return query_JND

    def log_probabilities(self, query_JND: Tensor) -> Tensor:
        """[J, N, K] of every code, −inf past the end of a codebook."""
        scale = self.log_scale.clamp(0.0, math.log(_MAX_SCALE)).exp()
        logits_JNK = F.normalize(query_JND, dim=-1) @ F.normalize(self.codes_JKD, dim=-1).transpose(1, 2) * scale
        return logits_JNK.masked_fill(self.unused_JK[:, None], -torch.inf).log_softmax(-1)


class ParallelCodes(Codebooks):
    """One softmax per code, all from one query."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.parallel_sizes, config)

    def forward(self, query_ND: Tensor) -> Tensor:
        """[J, N, K] log-probabilities of every code, from query vectors of dense retrieval."""
        return self.log_probabilities(self.queries(query_ND))

    def loss(self, query_ND: Tensor, code_NJ: Tensor) -> Tensor:
        """Mean over rows and codes of −log p, in nats."""
        logp_JNK = self(query_ND)
        return -logp_JNK.gather(2, code_NJ.T[..., None]).mean()


@torch.no_grad()
def code_scores(logp_JBK: Tensor, code_IJ: Tensor) -> Tensor:
    """[B, I] mean log-probability of the codes of every item.

    Args:
        logp_JBK: of :class:`ParallelCodes` or :class:`recsys.set_codes.SetCodes`.
        code_IJ: [I, J] codes of the catalogue.
    """
    num_codes, num_requests, size = logp_JBK.shape
    score_BI = logp_JBK.new_zeros(num_requests, len(code_IJ))
    for logp_BK, code_I in zip(logp_JBK, code_IJ.T, strict=True):
        score_BI += logp_BK.index_select(1, code_I)
    return score_BI / num_codes
