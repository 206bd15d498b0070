"""The loss of the full softmax and its gradients: chunks of rows with bfloat16 factors, against torch's own."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from recsys.losses import full_softmax_loss_sum
from recsys.pipelines.bench.case import Case, interleaved_seconds

__all__ = ["bench_softmax"]

_DIM = 64
_CATALOGUES = (12_000, 50_000)
_ROWS = (256, 2048)
_LABELS = 9


def bench_softmax(*, long: bool) -> list[Case]:
    """One training step's softmax per case; the headline has 256 targets of 12,000 items."""
    return [_case(rows, items, 21 if long else 5) for items in _CATALOGUES for rows in _ROWS]


def _case(rows: int, items: int, repeats: int) -> Case:
    torch.manual_seed(0)
    query, vectors = torch.randn(rows, _DIM, requires_grad=True), (torch.randn(items, _DIM) * 0.3).requires_grad_()
    label, weight = torch.randint(items, (rows, _LABELS)), torch.rand(rows, _LABELS).softmax(1)

    def plain() -> Tensor:
        return -((query @ vectors.T).log_softmax(1).gather(1, label) * weight).sum()

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [query, vectors])

    def ours(factors: torch.dtype) -> tuple[Tensor, ...]:
        return gradients(full_softmax_loss_sum(query, vectors, label, weight, factors=factors))

    exact, halved = gradients(plain()), ours(torch.bfloat16)
    error = statistics.mean(float((a - b).norm() / b.norm()) for a, b in zip(halved, exact, strict=True))
    seconds = interleaved_seconds(
        {
            "bfloat16": lambda: ours(torch.bfloat16),
            "float32": lambda: ours(torch.float32),
            "plain": lambda: gradients(plain()),
        },
        repeats=repeats,
    )
    return Case(
        name=f"{rows:,} targets, {items:,} items",
        shape={"targets": rows, "items": items, "dim": _DIM, "labels": _LABELS},
        ours={"what": "in chunks, bfloat16 factors", "ms": seconds["bfloat16"] * 1e3, "gradient_error": error}
        | {"ms_float32": seconds["float32"] * 1e3},
        other={"what": "log_softmax and autograd, float32", "ms": seconds["plain"] * 1e3},
        ratio=seconds["plain"] / seconds["bfloat16"],
        predicted_ratio=None,
    )
