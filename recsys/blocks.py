"""Encoder blocks: what happens around attention. Attention itself is called by the encoder, cached or not.

Suffixes: R = rows of any leading shape, D = model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.attention import AttentionKind
from recsys.causal_blocks import RunBias, TimeRuns
from recsys.dropout import Dropout
from recsys.model_config import ModelConfig
from recsys.position_bias import PositionBias
from recsys.time_features import TimeBias

__all__ = ["Block", "HstuBlock", "LigrBlock", "SoftmaxBlock", "make_block"]


class Block(nn.Module, ABC):
    """One layer, split at its attention so that prefill, delta forward and append share the same weights."""

    kind: AttentionKind

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.time_bias = TimeBias(config.num_heads) if config.has_time_bias else None
        self.position_bias = PositionBias(config.num_heads, config.window) if config.position_bias else None

    def heads(self, x: Tensor) -> Tensor:
        """[..., D] to [..., H, head_dim]."""
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def bias(self, bucket_BNL: Tensor | None, distance_BNL: Tensor | None) -> Tensor | None:
        """[B, H, N, L] sum of the biases that the block has, from buckets of t_i − t_j and distances in rows."""
        time = None if self.time_bias is None or bucket_BNL is None else self.time_bias(bucket_BNL)
        position = None if self.position_bias is None or distance_BNL is None else self.position_bias(distance_BNL)
        return _sum(time, position)

    def row_bias(
        self, runs: TimeRuns | None, bucket_BLL: Tensor | None, distance_BLL: Tensor | None
    ) -> Tensor | RunBias | None:
        """:meth:`bias` of rows of a history to one another; in blocks of rows where ``runs`` are given."""
        if runs is None or self.time_bias is None:
            return self.bias(bucket_BLL, distance_BLL)
        return runs.bias(self.time_bias.table.all_rows())

    def own_bias(self) -> Tensor | None:
        """[H]: the bias of a row to itself."""
        time = None if self.time_bias is None else self.time_bias.same_time()
        return _sum(time, None if self.position_bias is None else self.position_bias.same_row())

    @abstractmethod
    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values [..., H, head_dim], and a gate [..., D] where the block has one."""

    @abstractmethod
    def finish(self, x_RD: Tensor, attended: Tensor, gate: Tensor | None) -> Tensor:
        """The block's output from its input, [..., H, head_dim] attention and gate."""


class SoftmaxBlock(Block):
    """Pre-norm transformer layer."""

    kind: AttentionKind = "softmax"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.norm_attention, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, config.ffn_factor * dim), nn.Linear(config.ffn_factor * dim, dim)
        self.dropout = Dropout(config.dropout)

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v = self.qkv(self.norm_attention(x_RD)).chunk(3, -1)
        return self.heads(q), self.heads(k), self.heads(v), None

    def finish(self, x_RD: Tensor, attended: Tensor, gate: Tensor | None) -> Tensor:
        x_RD = x_RD + self.dropout(self.out(attended.flatten(-2)))
        return x_RD + self.dropout(self.down(self.dropout(F.gelu(self.up(self.norm_ffn(x_RD))))))


class LigrBlock(Block):
    """Pre-norm transformer layer with SwiGLU whose two branches pass a gate of the un-normalised input.

    LiGR (arXiv 2502.03417), as in eSASRec (arXiv 2508.06450).
    """

    kind: AttentionKind = "softmax"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.norm_attention, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.gate_attention, self.gate_ffn = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * config.ffn_factor * dim), nn.Linear(config.ffn_factor * dim, dim)
        self.dropout = Dropout(config.dropout)

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v = self.qkv(self.norm_attention(x_RD)).chunk(3, -1)
        return self.heads(q), self.heads(k), self.heads(v), self.gate_attention(x_RD).sigmoid()

    def finish(self, x_RD: Tensor, attended: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        x_RD = x_RD + gate * self.dropout(self.out(attended.flatten(-2)))
        wide, linear = self.up(self.norm_ffn(x_RD)).chunk(2, -1)
        return x_RD + self.gate_ffn(x_RD).sigmoid() * self.dropout(self.down(F.silu(wide) * linear))


class HstuBlock(Block):
    """Pointwise-attention layer of HSTU (arXiv 2402.17152): one SiLU projection to U, V, Q, K and a gated output."""

    kind: AttentionKind = "silu"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.dim = config.dim
        self.uvqk = nn.Linear(config.dim, 4 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim)
        self.dropout = Dropout(config.dropout)

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        u, v, q, k = F.silu(self.uvqk(F.layer_norm(x_RD, (self.dim,)))).chunk(4, -1)
        return self.heads(q), self.heads(k), self.heads(v), u

    def finish(self, x_RD: Tensor, attended: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        mixed = gate * F.layer_norm(attended.flatten(-2), (self.dim,))
        return x_RD + self.out(self.dropout(mixed))


_BLOCKS: dict[str, type[Block]] = {"softmax": SoftmaxBlock, "hstu": HstuBlock, "ligr": LigrBlock}


def make_block(config: ModelConfig) -> Block:
    """The block that the configuration names."""
    return _BLOCKS[config.block](config)


def init_linear(module: nn.Module) -> None:
    """N(0, 0.02²) weights and zero biases for the layers of an encoder."""
    if isinstance(module, nn.Linear):
        torch.nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
