"""Logistic regression of a few features, by Newton's method.

Suffixes: R = rows, F = features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fit_logistic"]

_STEPS = 50
_HALVINGS = 30

Floats = NDArray[np.float64]


def fit_logistic(x_RF: Floats, yes_R: NDArray[np.bool_], prior_F: Floats, penalty_FF: Floats) -> Floats:
    """[F] weights w of least log loss + ½ (w − prior)ᵀ penalty (w − prior), which is convex.

    Starts at the prior; a step that does not help is halved until it does.
    """
    label_R = yes_R.astype(np.float64)

    def loss(weight_F: Floats) -> float:
        score_R, move_F = x_RF @ weight_F, weight_F - prior_F
        return float((np.logaddexp(0.0, score_R) - label_R * score_R).sum() + 0.5 * move_F @ penalty_FF @ move_F)

    best_F, best = prior_F.astype(np.float64), loss(prior_F)
    for _ in range(_STEPS):
        prob_R = 1.0 / (1.0 + np.exp(-np.clip(x_RF @ best_F, -50, 50)))
        gradient_F = x_RF.T @ (prob_R - label_R) + penalty_FF @ (best_F - prior_F)
        hessian_FF = (x_RF * (prob_R * (1 - prob_R))[:, None]).T @ x_RF + penalty_FF
        step_F = np.linalg.solve(hessian_FF, gradient_F)
        for _ in range(_HALVINGS):
            trial = loss(best_F - step_F)
            if trial <= best:
                break
            step_F = step_F / 2
        else:
            break
        gain, best_F, best = best - trial, best_F - step_F, trial
        if gain < 1e-9 * max(1.0, abs(best)):
            break
    return best_F
