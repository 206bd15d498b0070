"""Many query rows over one shared set of keys and values, as one matrix product: candidates or beams over a history.

What rows read of different keys is computed apart and joined: sums of SiLU weights add up, and softmax parts are merged
exactly by the logarithms of their sums of exponentials.

Suffixes: B = requests, H = heads, X = B · H, N = query rows, L = shared rows, E = head width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NEVER", "Part", "attend_own", "attend_shared", "joined", "shared_bias"]

NEVER = -3e4
"""A bias that leaves a row out: its weight underflows to 0 in every float type, and a row that sees nothing at all
reads a number and not a NaN."""
_SCORES = 2**17
"""Scores of a block on a CPU, half a MiB that the cache of a core holds; 2^16 to 2^18 measured alike for 200 and 500
rows over 1,024 shared ones, and whole products took 1.7 times as long for 500."""
_ROWS = 64
"""Query rows of a block at least, where there are so many: a block of fewer reads the shared rows again and again. With
8 rows of 32 matrices in a block, 200 rows took twice as long."""


class Part(NamedTuple):
    """What query rows read of some keys."""

    read_XNE: Tensor
    """Weighted values; with softmax those of a softmax over these keys alone."""
    log_sum_XN1: Tensor | None
    """ln of the sum of exponentials of the scores; None with SiLU weights, which no sum divides."""


def shared_bias(bias_BHNL: Tensor | None, visible_BN: Tensor, length: int, num_heads: int) -> Tensor | None:
    """[X, N or 1, L] bias of scores, with :data:`NEVER` where a row is not visible; None where it would change nothing.

    Args:
        bias_BHNL: B, N and H may be 1. visible_BN: [B, N or 1] row n sees the first ``visible`` shared rows.
    """
    hidden_BNL = torch.arange(length, device=visible_BN.device) >= visible_BN[..., None]
    # Looked at on a CPU alone, where it costs no wait, and not while a graph is recorded.
    if hidden_BNL.is_cpu and not torch.compiler.is_compiling() and not bool(hidden_BNL.any()):
        if bias_BHNL is None:
            return None
    elif bias_BHNL is None:
        bias_BHNL = torch.zeros(hidden_BNL.shape, device=hidden_BNL.device).masked_fill(hidden_BNL, NEVER)[:, None]
    else:
        bias_BHNL = bias_BHNL.masked_fill(hidden_BNL[:, None], NEVER)
    return bias_BHNL.expand(visible_BN.shape[0], num_heads, -1, -1).flatten(0, 1)


def attend_shared(
    q_XNE: Tensor, k_XEL: Tensor, v_XLE: Tensor, bias: Tensor | None, *, kind: Literal["softmax", "silu"]
) -> Part:
    """Every query row over the same keys and values.

    Args:
        q_XNE: scaled queries. k_XEL, v_XLE: shared keys and values, the latter of any width; L may not be 0.
        bias: [X, N or 1, L] added to the scores; see :func:`shared_bias`.
    """
    num, rows, _ = q_XNE.shape
    if torch.is_grad_enabled() or not q_XNE.is_cpu or torch.compiler.is_compiling():
        return _whole(q_XNE, k_XEL, v_XLE, bias, kind)
    scores = _SCORES * torch.get_num_threads() // max(1, k_XEL.shape[2])
    together = max(1, min(num, scores // min(_ROWS, max(1, rows))))
    step = max(1, scores // together)
    if step >= rows and together >= num:
        return _block(q_XNE, k_XEL, v_XLE, bias, kind)
    read_XNE = torch.empty(num, rows, v_XLE.shape[2], dtype=v_XLE.dtype)
    log_sum_XN1 = torch.empty(num, rows, 1) if kind == "softmax" else None
    for first in range(0, num, together):
        some = slice(first, first + together)
        k_here, v_here = k_XEL[some], v_XLE[some]
        for low in range(0, rows, step):
            cut = slice(low, low + step)
            bias_here = bias if bias is None else bias[some] if bias.shape[1] == 1 else bias[some, cut]
            part = _block(q_XNE[some, cut], k_here, v_here, bias_here, kind)
            read_XNE[some, cut] = part.read_XNE
            if log_sum_XN1 is not None and part.log_sum_XN1 is not None:
                log_sum_XN1[some, cut] = part.log_sum_XN1
    return Part(read_XNE, log_sum_XN1)


def _scores(q_XNE: Tensor, k_XEL: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.bmm(q_XNE, k_XEL)
    return torch.baddbmm(bias.to(q_XNE.dtype).expand(-1, q_XNE.shape[1], -1), q_XNE, k_XEL)


def _whole(q_XNE: Tensor, k_XEL: Tensor, v_XLE: Tensor, bias: Tensor | None, kind: str) -> Part:
    score_XNL = _scores(q_XNE, k_XEL, bias)
    if kind == "silu":
        return Part(torch.bmm(F.silu(score_XNL), v_XLE), None)
    # One exponential serves the weights and their sum, and is all that the gradient keeps.
    most_XN1 = score_XNL.detach().amax(-1, keepdim=True)
    weight_XNL = (score_XNL - most_XN1).exp()
    sum_XN1 = weight_XNL.sum(-1, keepdim=True)
    return Part(torch.bmm(weight_XNL, v_XLE) / sum_XN1, most_XN1 + sum_XN1.log())


def _block(q_XNE: Tensor, k_XEL: Tensor, v_XLE: Tensor, bias: Tensor | None, kind: str) -> Part:
    """:func:`_whole` without a gradient, in the memory of the scores."""
    score_XNL = _scores(q_XNE, k_XEL, bias)
    if kind == "silu":
        return Part(torch.bmm(F.silu(score_XNL, inplace=True), v_XLE), None)
    most_XN1 = score_XNL.amax(-1, keepdim=True)
    weight_XNL = score_XNL.sub_(most_XN1).exp_()
    sum_XN1 = weight_XNL.sum(-1, keepdim=True)
    return Part(torch.bmm(weight_XNL, v_XLE).div_(sum_XN1), most_XN1 + sum_XN1.log())


def attend_own(score_XN1: Tensor, v_XNE: Tensor, *, kind: Literal["softmax", "silu"]) -> Part:
    """Every query row over the one row that no other sees, its own.

    Args:
        score_XN1: scaled scores, their bias added.
    """
    if kind == "silu":
        return Part(F.silu(score_XN1) * v_XNE, None)
    return Part(v_XNE, score_XN1)


def joined(first: Part, second: Part) -> Tensor:
    """[X, N, E] what rows read of both sets of keys, as one attention over all of them would."""
    if first.log_sum_XN1 is None or second.log_sum_XN1 is None:
        return first.read_XNE + second.read_XNE
    # e^a / (e^a + e^b) is a sigmoid, which no large score overflows.
    share_XN1 = torch.sigmoid(first.log_sum_XN1 - second.log_sum_XN1)
    return second.read_XNE + share_XN1 * (first.read_XNE - second.read_XNE)
