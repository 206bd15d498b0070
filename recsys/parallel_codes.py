"""The head that predicts all codes of an item at once, each by itself, and scores the whole catalogue exactly.

Long semantic IDs of independent codes (RPG, arXiv 2506.05781): code j has a query of its own, a residual layer on the
query of dense retrieval, and a softmax over its codebook: of cosines to its vectors, or of inner products where these
start as what the codes stand for among the item vectors. The score of an item is the mean of the log-probabilities of
its codes, one gather per code; with inner products it is up to a constant that of an item vector put together from
codes, so that a softmax over items can train it (as in RecJPQ, arXiv 2312.06165).

Suffixes: N = rows, B = requests, D = width, J = codes of an item, K = codes of a codebook, I = items.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.code_vectors import additive_vectors
from recsys.dropout import Dropout
from recsys.model_config import ModelConfig

__all__ = ["Codebooks", "ParallelCodes", "code_scores"]

_START_TEMPERATURE, _MAX_SCALE = 0.05, 100.0
_ONE_QUERY_WIDTH = 4
_STEP = 256
"""Matrix products of short factors come in multiples of so many rows: oneDNN keeps compiled code for each of the last
thousand shapes, megabytes of it in a step whose numbers of rows no other step has."""


class Codebooks(nn.Module):
    """A vector for every code, and for every codebook a query of its own and a softmax over its vectors."""

    def __init__(self, sizes: tuple[int, ...], config: ModelConfig, *, one_query: bool = False) -> None:
        super().__init__()
        self.sizes, dim = sizes, config.dim
        self.is_cosine = config.code_score == "cosine"
        num, largest = len(sizes), max(sizes)
        queries, hidden = (1, _ONE_QUERY_WIDTH * dim) if one_query else (num, dim)
        self.down_JDD = nn.Parameter(torch.randn(queries, dim, hidden) * dim**-0.5)
        self.up_JDD = nn.Parameter(torch.zeros(queries, hidden, dim))
        self.norm = nn.LayerNorm(dim)
        self.codes_JKD = nn.Parameter(torch.randn(num, largest, dim) * 0.02)
        if self.is_cosine:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(_START_TEMPERATURE)))
        self.dropout = Dropout(config.code_dropout)
        used_JK = torch.arange(largest) < torch.tensor(sizes)[:, None]
        self.register_buffer("unused_JK", ~used_JK, persistent=False)

    unused_JK: Tensor

    def queries(self, query_ND: Tensor) -> Tensor:
        """[J, N, D] queries to every codebook, or [1, N, D] of all: residual layers on queries of dense retrieval."""
        z_ND = self.norm(query_ND)
        hidden_JND = F.silu(z_ND @ self.down_JDD)
        query_JND: Tensor = (z_ND if self.is_cosine else query_ND) + self.dropout(hidden_JND) @ self.up_JDD
        return query_JND

    @torch.no_grad()
    def start_from(self, vectors_ID: Tensor, code_IJ: Tensor) -> None:
        """Take the vectors of codes that add up to about those of the items; only with inner products.

        Args:
            vectors_ID: [I, D] item vectors of dense retrieval. code_IJ: [I, J] int64.
        """
        if not self.is_cosine:
            self.codes_JKD.copy_(additive_vectors(vectors_ID, code_IJ, self.sizes))

    def log_probabilities(self, query_JND: Tensor) -> Tensor:
        """[J, N, K] of every code, −inf past the end of a codebook."""
        if self.is_cosine:
            scale = self.log_scale.clamp(0.0, math.log(_MAX_SCALE)).exp()
            logits_JNK = F.normalize(query_JND, dim=-1) @ F.normalize(self.codes_JKD, dim=-1).transpose(1, 2) * scale
        else:
            logits_JNK = query_JND @ self.codes_JKD.transpose(1, 2)
        return logits_JNK.masked_fill(self.unused_JK[:, None], -torch.inf).log_softmax(-1)

    def item_logits(self, query_JND: Tensor, code_MJ: Tensor, factors: torch.dtype = torch.float32) -> Tensor:
        """[N, M] float32 sums over codes of the inner products of queries with the codes' vectors of some items.

        Up to a constant of the row they are the items' log-probabilities.

        Args:
            query_JND: [J, N, D], or [1, N, D]. code_MJ: [M, J] int64.
            factors: type of the factors and results of the matrix products.
        """
        vector_MJD = torch.stack(
            [book_KD[code_M] for book_KD, code_M in zip(self.codes_JKD, code_MJ.T, strict=True)], 1
        )
        if len(query_JND) == 1:
            vector_MJD = vector_MJD.sum(1, keepdim=True)
        query_NX, vector_MX = query_JND.transpose(0, 1).flatten(1), vector_MJD.flatten(1)
        if factors == torch.float32:
            return query_NX @ vector_MX.T
        found_NM = _in_steps(query_NX.to(factors)) @ _in_steps(vector_MX.to(factors)).T
        return found_NM[: len(query_NX), : len(vector_MX)].float()


class ParallelCodes(Codebooks):
    """One softmax per code, all from one query.

    With inner products the codebooks share one residual layer: a softmax over items then costs what that of dense
    retrieval does, and not as many times as an item has codes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.parallel_sizes, config, one_query=config.code_score == "dot")

    def forward(self, query_ND: Tensor) -> Tensor:
        """[J, N, K] log-probabilities of every code, from query vectors of dense retrieval."""
        return self.log_probabilities(self.queries(query_ND))

    def loss(self, query_ND: Tensor, code_NJ: Tensor) -> Tensor:
        """Mean over rows and codes of −log p, in nats."""
        logp_JNK = self(query_ND)
        return -logp_JNK.gather(2, code_NJ.T[..., None]).mean()


def _in_steps(rows_RX: Tensor) -> Tensor:
    """Rows and rows of zeros after them up to a multiple of :data:`_STEP`."""
    return F.pad(rows_RX, (0, 0, 0, -len(rows_RX) % _STEP))


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
