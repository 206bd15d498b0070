"""A rising curve from a logit to a probability, as plain arrays.

Suffix: P = points of the curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["IsotonicCurve"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class IsotonicCurve:
    """Straight lines between points, flat before the first and after the last."""

    logit_P: Floats
    """Rising strictly."""
    probability_P: Floats
    """Never falling, from 0 to 1."""

    def __post_init__(self) -> None:
        logit_P, probability_P = self.logit_P, self.probability_P
        if logit_P.ndim != 1 or logit_P.shape != probability_P.shape or not len(logit_P):
            raise ValueError(
                f"a curve needs points, as many logits as probabilities; got {logit_P.shape} and {probability_P.shape}"
            )
        finite = np.isfinite(logit_P).all() and np.isfinite(probability_P).all()
        if not finite or (np.diff(logit_P) <= 0).any() or (np.diff(probability_P) < 0).any():
            raise ValueError("the points of a curve must be finite and rise; fit it again")
        if probability_P[0] < 0 or probability_P[-1] > 1:
            raise ValueError("the probabilities of a curve must be from 0 to 1; fit it again")

    def __call__(self, logits: Tensor) -> Tensor:
        """float64 probabilities of logits, in their shape."""
        logit_P, probability_P = (
            torch.from_numpy(values).to(logits.device, torch.float64) for values in (self.logit_P, self.probability_P)
        )
        if len(logit_P) == 1:
            return torch.full_like(logits, float(probability_P[0]), dtype=torch.float64)
        at = logits.double().clamp(logit_P[0], logit_P[-1]).contiguous()
        if torch.compiler.is_compiling():  # ONNX has no binary search
            right = (logit_P <= at[..., None]).sum(-1)
        else:
            right = torch.searchsorted(logit_P, at, right=True)
        right = right.clamp(1, len(logit_P) - 1)
        share = (at - logit_P[right - 1]) / (logit_P[right] - logit_P[right - 1])
        return torch.lerp(probability_P[right - 1], probability_P[right], share)
