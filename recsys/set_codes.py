"""The head that predicts a set of codes of an item: one learned query per code, all at once.

Query-guided simultaneous generation (SETRec, arXiv 2502.10833) over codebooks: the queries read the keys and values
that the encoder left of a history, each by itself; none sees another, so that the codes have no order. They start from
the query vector of dense retrieval, so that time and surface of the request enter, each through a layer of its own: on
a frozen encoder of Amazon Toys 900 steps of that left 4.07 nats a code, with one projection for all of them 4.10. The
score of an item is the mean of the log-probabilities of its codes.

Suffixes: N = rows, D = width, J = codes of an item, K = codes of a codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.code_decoder import HistoryReader, ReadBlock, layers_read, start_weights
from recsys.model_config import ModelConfig
from recsys.parallel_codes import Codebooks

__all__ = ["SetCodes"]


class SetCodes(Codebooks):
    """One softmax per code, each from a query of its own that has read the history."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.set_sizes, config)
        self.token_JD = nn.Parameter(torch.zeros(len(self.sizes), config.dim))
        self.blocks = nn.ModuleList(ReadBlock(config) for _ in range(config.set_blocks)).apply(start_weights)
        self.layers = layers_read(config.set_blocks, config.num_blocks)
        self.norm_out = nn.LayerNorm(config.dim)
        if not self.is_cosine:
            self.out = nn.Linear(config.dim, config.dim)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, query_ND: Tensor, read: HistoryReader) -> Tensor:
        """[J, N, K] log-probabilities of every code, −inf past the end of a codebook.

        Args:
            query_ND: [N, D] query vectors of dense retrieval.
            read: attention of [N, J, H, E] queries to the history.
        """
        return self.log_probabilities(self.read_queries(query_ND, read))

    def read_queries(self, query_ND: Tensor, read: HistoryReader) -> Tensor:
        """[J, N, D] queries to every codebook that have read the history; arguments of :meth:`forward`."""
        start_NJD = self.queries(query_ND).transpose(0, 1)
        x_NJD = start_NJD + self.token_JD
        for block, layer in zip(self.blocks, self.layers, strict=True):
            assert isinstance(block, ReadBlock)
            x_NJD = block.read(x_NJD, lambda query, layer=layer: read(layer, query))  # type: ignore[misc]
        if self.is_cosine:
            return self.norm_out(x_NJD).transpose(0, 1)
        # A small step away from dense retrieval's own query, where training starts.
        return (start_NJD + self.out(self.norm_out(x_NJD))).transpose(0, 1)

    def loss(self, query_ND: Tensor, code_NJ: Tensor, read: HistoryReader) -> Tensor:
        """Mean over rows and codes of −log p, in nats."""
        logp_JNK = self(query_ND, read)
        return -logp_JNK.gather(2, code_NJ.T[..., None]).mean()
