"""Attention of history rows over their past, and of new rows over a cached history.

Suffixes: T = packed rows, B = sequences, L = rows of a cached history, N = new rows, H = heads, D = head width.
Two kinds of weights: ``softmax``, and ``silu`` = SiLU(score) / max_len as in HSTU (arXiv 2402.17152), whose constant
divisor needs no normaliser over the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.causal_blocks import RunBias, attend_blocks
from recsys.shared_attention import attend_own, attend_shared, joined, shared_bias

__all__ = [
    "AttentionKind",
    "Group",
    "attend_delta",
    "attend_packed",
    "attend_padded",
    "delta_weights",
    "equal_length_groups",
]

AttentionKind = Literal["softmax", "silu"]


@dataclass(frozen=True, slots=True)
class Group:
    """Adjacent sequences of one length: rows ``start`` to ``start + num_sequences * length`` of the packed batch.

    A group is a view, so packed attention on a CPU copies and pads nothing.
    """

    start: int
    num_sequences: int
    length: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.num_sequences * self.length)


def equal_length_groups(lengths: Sequence[int]) -> tuple[Group, ...]:
    """Groups of a packed batch; sort the sequences by length first to get few of them. Empty sequences have no rows."""
    groups: list[Group] = []
    start = 0
    for length in lengths:
        if groups and groups[-1].length == length:
            groups[-1] = Group(groups[-1].start, groups[-1].num_sequences + 1, length)
        elif length:
            groups.append(Group(start, 1, length))
        start += length
    return tuple(groups)


def attend_packed(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    groups: Sequence[Group],
    bias: Sequence[Tensor | RunBias] | None,
    *,
    kind: AttentionKind,
    max_len: int,
) -> Tensor:
    """Causal attention inside each sequence of a packed batch.

    Args:
        q_THD, k_THD, v_THD: [T, H, D].
        groups: covers all T rows, in order.
        bias: per group [B, H, L, L], added to the scaled scores, or what makes it in blocks of rows; None = no bias.
        max_len: divides silu weights; a constant of the model.
    Returns:
        [T, H, D].
    """
    scale = q_THD.shape[-1] ** -0.5
    sizes = [group.num_sequences * group.length for group in groups]
    if kind == "silu":
        v_THD = v_THD / max_len
    # One split: its backward pass is one concatenation, where a slice per group would fill a whole gradient each.
    rows = zip(*(x.split(sizes) for x in (q_THD, k_THD, v_THD)), strict=True)
    parts: list[Tensor] = []
    for number, (group, qkv) in enumerate(zip(groups, rows, strict=True)):
        shape = (group.num_sequences, group.length, *q_THD.shape[1:])
        bias_here = None if bias is None else bias[number]
        in_blocks = q_THD.device.type == "cpu" and kind == "silu" and not torch.is_grad_enabled()
        if isinstance(bias_here, RunBias) or (bias_here is None and in_blocks):
            q, k, v = (x.view(shape) for x in qkv)
            out_BLHD = attend_blocks(q, k, v, bias_here, softmax=kind == "softmax")
        else:
            q, k, v = (x.view(shape).transpose(1, 2) for x in qkv)
            if kind == "softmax" and bias_here is None:
                out_BHLD = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                score_BHLL = (q * scale) @ k.transpose(-1, -2)
                if bias_here is not None:
                    score_BHLL = score_BHLL + bias_here
                future_LL = torch.ones(group.length, group.length, dtype=torch.bool, device=q.device).triu(1)
                out_BHLD = _weights(score_BHLL, future_LL, kind) @ v
            out_BLHD = out_BHLD.transpose(1, 2)
        parts.append(out_BLHD.reshape(-1, *q_THD.shape[1:]))
    return torch.cat(parts) if parts else torch.empty_like(v_THD)


def attend_padded(
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, bias_BHLL: Tensor | None, *, kind: AttentionKind, max_len: int
) -> Tensor:
    """:func:`attend_packed` of sequences padded on the right, without a decision that looks at the data.

    No real row sees a padded one, which all stand behind it; what padded rows get means nothing.
    """
    score_BHLL = (q_BLHD * q_BLHD.shape[-1] ** -0.5).transpose(1, 2) @ k_BLHD.permute(0, 2, 3, 1)
    if bias_BHLL is not None:
        score_BHLL = score_BHLL + bias_BHLL
    place_L = torch.arange(q_BLHD.shape[1], device=q_BLHD.device)
    weight_BHLL = _weights(score_BHLL, place_L[:, None] < place_L, kind)
    if kind == "silu":
        v_BLHD = v_BLHD / max_len
    return (weight_BHLL @ v_BLHD.transpose(1, 2)).transpose(1, 2)


def attend_delta(
    q_BNHD: Tensor,
    k_own: Tensor,
    v_own: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    visible_BN: Tensor,
    *,
    own: Literal["self", "causal"],
    bias_BHNL: Tensor | None,
    bias_own: Tensor | None,
    kind: AttentionKind,
    max_len: int,
) -> Tensor:
    """New rows attend to a cached history and to themselves: M-FALCON's delta forward (arXiv 2402.17152).

    Args:
        k_own, v_own: [B, N, H, D] keys and values of the new rows.
        k_BLHD, v_BLHD: [B, L, H, D] cached history, padded on the right.
        visible_BN: [B, N] int64, row n sees the first ``visible`` cached rows; [B, 1] with ``self``: all see as many.
        own: ``self`` = a new row sees no other new row (candidates); ``causal`` = those before it and itself (events).
        bias_BHNL: added to the scaled history scores; N may be 1.
        bias_own: [H] for ``self``, [B, H, N, N] for ``causal``.
    Returns:
        [B, N, H, D].
    """
    num_users, num_rows, num_heads, width = q_BNHD.shape
    if not num_rows:
        return q_BNHD
    q_BNHD = q_BNHD * width**-0.5
    q_XNE = q_BNHD.transpose(1, 2).flatten(0, 1)
    if own == "self":
        score_BNH = (q_BNHD * k_own).sum(-1)
        if bias_own is not None:
            score_BNH = score_BNH + bias_own
        score_XN1 = score_BNH.transpose(1, 2).flatten(0, 1)[..., None]
        part = attend_own(score_XN1, v_own.transpose(1, 2).flatten(0, 1), kind=kind)
    else:
        visible_own_BN = torch.arange(1, num_rows + 1, device=q_BNHD.device).expand(num_users, -1)
        bias = shared_bias(bias_own, visible_own_BN, num_rows, num_heads)
        part = attend_shared(q_XNE, *_shared(k_own, v_own), bias, kind=kind)
    length = k_BLHD.shape[1]
    read_XNE = part.read_XNE
    if length:
        bias = shared_bias(bias_BHNL, visible_BN, length, num_heads)
        read_XNE = joined(attend_shared(q_XNE, *_shared(k_BLHD, v_BLHD), bias, kind=kind), part)
    if kind == "silu":
        read_XNE = read_XNE / max_len
    return read_XNE.view(num_users, num_heads, num_rows, v_BLHD.shape[-1]).transpose(1, 2)


def delta_weights(
    q_BNHD: Tensor,
    k_own: Tensor,
    k_BLHD: Tensor,
    visible_BN: Tensor,
    *,
    bias_BHNL: Tensor | None,
    bias_own: Tensor | None,
    kind: AttentionKind,
    max_len: int,
) -> Tensor:
    """[B, N, H, L] the weights that :func:`attend_delta` gives to cached rows when ``own`` is ``self``."""
    length = k_BLHD.shape[1]
    one_LL = torch.eye(length, dtype=q_BNHD.dtype, device=q_BNHD.device)
    # Values that name their rows: what is read of them are the weights.
    one_BLHL = one_LL[:, None].expand(len(k_BLHD), length, k_BLHD.shape[2], length)
    nothing = k_own.new_zeros(*k_own.shape[:-1], length)
    return attend_delta(
        q_BNHD, k_own, nothing, k_BLHD, one_BLHL, visible_BN,
        own="self", bias_BHNL=bias_BHNL, bias_own=bias_own, kind=kind, max_len=max_len,
    )  # fmt: skip


def _shared(k_BLHD: Tensor, v_BLHD: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [B · H, D, L] and values [B · H, L, D]."""
    # Rows are copied whole and the product reads them crosswise; to copy numbers crosswise takes six times as long.
    return k_BLHD.transpose(1, 2).flatten(0, 1).transpose(1, 2), v_BLHD.transpose(1, 2).flatten(0, 1)


def _weights(score: Tensor, hidden: Tensor, kind: AttentionKind) -> Tensor:
    """Silu weights are divided by ``max_len`` through the values, which are fewer."""
    if kind == "softmax":
        return score.masked_fill(hidden, float("-inf")).softmax(-1)
    return F.silu(score).masked_fill(hidden, 0.0)
