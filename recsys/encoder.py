"""The encoder: a stack of blocks that can run over packed histories or over new rows beside cached ones.

Suffixes: R = packed rows, B = sequences, L = cached rows, N = new rows, H = heads, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.attention import Group, attend_delta, attend_packed, attend_padded, delta_weights
from recsys.blocks import Block, init_linear, make_block
from recsys.causal_blocks import TimeRuns, time_runs
from recsys.model_config import ModelConfig
from recsys.packing import CandidateRows
from recsys.time_features import UNKNOWN_GAP, gap_bucket
from recsys.time_rotary import Turn, rotate, time_turn

__all__ = ["KeysValues", "Encoder"]

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer keys and values: [R, H, head_dim] packed, or [B, L, H, head_dim] padded."""


def _difference_bucket(late: Tensor, late_known: Tensor, early: Tensor, early_known: Tensor) -> Tensor:
    """Buckets of t_i − t_j for [..., N] against [..., L]."""
    gap = (late[..., :, None] - early[..., None, :]).clamp_min(0)
    known = late_known[..., :, None] & early_known[..., None, :]
    return gap_bucket(torch.where(known, gap, UNKNOWN_GAP))


class Encoder(nn.Module):
    """Keys and values of row t depend on rows ≤ t only, whichever way they are computed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([make_block(config) for _ in range(config.num_blocks)])
        self.norm = nn.LayerNorm(config.dim)
        self.has_time_bias, self.has_rotary_time = config.has_time_bias, config.has_rotary_time
        self.has_position_bias = config.position_bias
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.max_len = config.window + 1
        self.blocks.apply(init_linear)

    def _layers(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _turn(self, time: Tensor, time_known: Tensor) -> Turn | None:
        return time_turn(time, time_known, self.num_heads, self.head_dim) if self.has_rotary_time else None

    def forward(
        self, x_RD: Tensor, groups: Sequence[Group], time_R: Tensor, time_known_R: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Encode packed sequences.

        Args:
            x_RD: tokens. groups: equal-length groups that cover all rows in order.
            time_R, time_known_R: time of each row, read by the time bias and the rotary angles only.
        Returns:
            [R, D] normalised outputs, and packed keys and values per layer.
        """
        buckets: list[Tensor | None] = [None] * len(groups)
        distances: list[Tensor | None] = [None] * len(groups)
        runs: list[TimeRuns | None] = [None] * len(groups)
        in_blocks = x_RD.device.type == "cpu" and not torch.is_grad_enabled() and not self.has_position_bias
        for number, group in enumerate(groups):
            if self.has_time_bias:
                time = time_R[group.rows].view(group.num_sequences, group.length)
                known = time_known_R[group.rows].view(group.num_sequences, group.length)
                runs[number] = time_runs(time, known) if in_blocks else None
                if runs[number] is None:
                    buckets[number] = _same_row_is_zero(_difference_bucket(time, known, time, known))
            if self.has_position_bias:
                place_L = torch.arange(group.length, device=x_RD.device)
                distances[number] = (place_L[:, None] - place_L)[None]
        turn = self._turn(time_R, time_known_R)
        cache: KeysValues = []
        for block in self._layers():
            q, k, v, gate = block.project(x_RD)
            if turn is not None:
                q, k = rotate(q, turn), rotate(k, turn)
            found = [block.row_bias(*seen) for seen in zip(runs, buckets, distances, strict=True)]
            bias = [part for part in found if part is not None] or None
            attended = attend_packed(q, k, v, groups, bias, kind=block.kind, max_len=self.max_len)
            x_RD = block.finish(x_RD, attended, gate)
            cache.append((k, v))
        return self.norm(x_RD), cache

    def padded(self, x_BLD: Tensor, time_BL: Tensor, time_known_BL: Tensor) -> tuple[Tensor, KeysValues]:
        """:meth:`forward` of sequences padded on the right, as one fixed sequence of tensor operations.

        Args:
            x_BLD: tokens; those of padded rows may be anything.
        Returns:
            [B, L, D] normalised outputs, and keys and values [B, L, H, head_dim] per layer.
        """
        bucket = distance = None
        if self.has_time_bias:
            bucket = _same_row_is_zero(_difference_bucket(time_BL, time_known_BL, time_BL, time_known_BL))
        if self.has_position_bias:
            place_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
            distance = (place_L[:, None] - place_L)[None]
        turn = self._turn(time_BL, time_known_BL)
        cache: KeysValues = []
        for block in self._layers():
            q, k, v, gate = block.project(x_BLD)
            if turn is not None:
                q, k = rotate(q, turn), rotate(k, turn)
            bias_BHLL = block.bias(bucket, distance)
            attended = attend_padded(q, k, v, bias_BHLL, kind=block.kind, max_len=self.max_len)
            x_BLD = block.finish(x_BLD, attended, gate)
            cache.append((k, v))
        return self.norm(x_BLD), cache

    def delta(
        self,
        x_ND: Tensor,
        rows: CandidateRows,
        cache: KeysValues,
        visible_BN: Tensor,
        *,
        own: Literal["self", "causal"],
        time_BN: Tensor,
        time_known_BN: Tensor,
        time_BL: Tensor,
        time_known_BL: Tensor,
        weights: list[Tensor] | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Run only new rows against cached keys and values.

        Args:
            x_ND: tokens of the new rows, packed as ``rows`` says.
            cache: padded [B, L, H, head_dim] per layer. visible_BN: cached *rows* each new row sees.
            own: see :func:`recsys.attention.attend_delta`.
            weights: takes the attention weights [B, N, H, L] of every layer, with ``self``, for somebody to look at.
        Returns:
            [N, D] outputs (packed) and the new rows' keys and values, padded [B, columns, H, head_dim].
        """
        bucket_BNL = bucket_own = distance_BNL = distance_own = None
        if self.has_time_bias:
            bucket_BNL = _difference_bucket(time_BN, time_known_BN, time_BL, time_known_BL)
            if own == "causal":
                bucket_own = _same_row_is_zero(_difference_bucket(time_BN, time_known_BN, time_BN, time_known_BN))
        if self.has_position_bias:
            new_N = torch.arange(visible_BN.shape[1], device=x_ND.device)
            place_BN = visible_BN if own == "self" else visible_BN + new_N
            distance_BNL = place_BN[..., None] - torch.arange(cache[0][0].shape[1], device=x_ND.device)
            if own == "causal":
                distance_own = (new_N[:, None] - new_N)[None]
        turn = self._turn(time_BN, time_known_BN)
        new_cache: KeysValues = []
        for block, (k_BLHD, v_BLHD) in zip(self._layers(), cache, strict=True):
            q, k, v, gate = block.project(x_ND)
            q, k, v = rows.pad(q), rows.pad(k), rows.pad(v)
            if turn is not None:
                q, k = rotate(q, turn), rotate(k, turn)
            bias_BHNL = block.bias(bucket_BNL, distance_BNL)
            new_cache.append((k, v))
            if own == "self":
                bias_own = block.own_bias()
            else:
                bias_own = block.bias(bucket_own, distance_own)
            if weights is not None:
                weights.append(
                    delta_weights(
                        q, k, k_BLHD, visible_BN,
                        bias_BHNL=bias_BHNL, bias_own=bias_own, kind=block.kind, max_len=self.max_len,
                    )
                )  # fmt: skip
            attended = attend_delta(
                q, k, v, k_BLHD, v_BLHD, visible_BN,
                own=own, bias_BHNL=bias_BHNL, bias_own=bias_own, kind=block.kind, max_len=self.max_len,
            )  # fmt: skip
            x_ND = block.finish(x_ND, rows.unpad(attended), gate)
        return self.norm(x_ND), new_cache


def _same_row_is_zero(bucket_BLL: Tensor) -> Tensor:
    """A row is no time away from itself, also where its time is unknown."""
    eye = torch.eye(bucket_BLL.shape[-1], dtype=torch.bool, device=bucket_BLL.device)
    return bucket_BLL.masked_fill(eye, 0)
