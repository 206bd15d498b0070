"""Probabilities that mean what they say: per action a temperature and an offset of the logits (Platt scaling).

Suffixes: R = slate rows, A = actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

__all__ = ["Calibration"]

_PRIOR_ROWS = 10.0
"""How many rows' worth of curvature pull towards leaving the logits alone: rare actions change little."""
_SCALES = (0.1, 10.0)
_NEWTON_STEPS = 50

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Probability = sigmoid(scale · logit + offset). Scales are positive, so that the order of rows stays."""

    scale_A: Floats
    """1 / temperature."""
    offset_A: Floats

    @classmethod
    def identity(cls, num_actions: int) -> Calibration:
        """Logits as they are."""
        return cls(np.ones(num_actions), np.zeros(num_actions))

    @classmethod
    def fit(cls, logit_RA: NDArray[np.float32], yes_RA: NDArray[np.bool_], known_RA: NDArray[np.bool_]) -> Calibration:
        """The least log loss on rows that training did not see; an action without both outcomes stays as it is."""
        fitted = cls.identity(logit_RA.shape[1])
        for action in range(logit_RA.shape[1]):
            known_R = known_RA[:, action]
            yes_R = yes_RA[known_R, action]
            if yes_R.any() and not yes_R.all():
                pair = _newton(logit_RA[known_R, action].astype(np.float64), yes_R.astype(np.float64))
                fitted.scale_A[action], fitted.offset_A[action] = pair
        return fitted

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale_A == 1).all() and (self.offset_A == 0).all())

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., A] float32 probabilities of the logits of every action."""
        scale_A, offset_A = (
            torch.from_numpy(values).to(logits.device, torch.float32) for values in (self.scale_A, self.offset_A)
        )
        return torch.sigmoid(logits.float() * scale_A + offset_A)

    def save(self, path: Path) -> None:
        """Write one file of plain arrays."""
        save_file({"scale": self.scale_A, "offset": self.offset_A}, path)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` wrote."""
        arrays = load_file(path)
        return cls(arrays["scale"], arrays["offset"])


def _newton(logit_R: Floats, yes_R: Floats) -> tuple[float, float]:
    """Scale and offset of least penalised log loss, which is convex; steps are halved until they help."""
    mean, spread = float(logit_R.mean()), max(float(logit_R.std()), 1e-3)
    penalty_22 = 0.25 * _PRIOR_ROWS * np.array([[mean**2 + spread**2, mean], [mean, 1.0]])
    start_2 = np.array([1.0, 0.0])
    best_2, best = start_2, _loss(start_2, logit_R, yes_R, penalty_22)
    for _ in range(_NEWTON_STEPS):
        prob_R = 1.0 / (1.0 + np.exp(-np.clip(best_2[0] * logit_R + best_2[1], -50, 50)))
        error_R, weight_R = prob_R - yes_R, prob_R * (1 - prob_R)
        gradient_2 = np.array([error_R @ logit_R, error_R.sum()]) + penalty_22 @ (best_2 - start_2)
        cross = weight_R @ logit_R
        hessian_22 = np.array([[weight_R @ logit_R**2, cross], [cross, weight_R.sum()]]) + penalty_22
        step_2 = np.linalg.solve(hessian_22, gradient_2)
        for _ in range(30):
            trial_2 = best_2 - step_2
            loss = _loss(trial_2, logit_R, yes_R, penalty_22)
            if loss <= best:
                break
            step_2 = step_2 / 2
        else:
            break
        moved, best_2, best = float(np.abs(step_2).max()), trial_2, loss
        if moved < 1e-9:
            break
    scale = float(np.clip(best_2[0], *_SCALES))
    # A clipped scale keeps the mean logit where it was.
    return scale, float(best_2[1] + (best_2[0] - scale) * mean)


def _loss(pair_2: Floats, logit_R: Floats, yes_R: Floats, penalty_22: Floats) -> float:
    score_R = pair_2[0] * logit_R + pair_2[1]
    move_2 = pair_2 - np.array([1.0, 0.0])
    return float((np.logaddexp(0.0, score_R) - yes_R * score_R).sum() + 0.5 * move_2 @ penalty_22 @ move_2)
