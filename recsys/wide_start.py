"""The forecast that the ranking head begins with: a logistic regression on the features of its candidates.

Suffixes: R = rows, A = actions, F = features, G = features and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.logistic import fit_logistic
from recsys.past_counts import GROUPS

__all__ = ["WideStart"]

_PLAIN = {"all": -0.9, "item": 0.5, "user": 0.7, "item_surface": 0.7}
_PENALTY = 20.0
_MIN_SCALE = 0.25
"""A feature that hardly moved in training, such as the overall rate, must not become huge when it moves later."""


@dataclass(frozen=True, slots=True)
class WideStart:
    """logits = weight · (features − mean) / scale + bias."""

    mean_F: Tensor
    scale_F: Tensor
    weight_AF: Tensor
    bias_A: Tensor

    @classmethod
    def fit(
        cls,
        feature_RF: NDArray[np.float64],
        yes_RA: NDArray[np.bool_],
        known_RA: NDArray[np.bool_],
        *,
        past_rates: bool = True,
    ) -> WideStart:
        """A logistic regression per action, held near the plain combination of rates: rare actions stay there.

        Args:
            past_rates: whether the features begin with past rates.
        """
        num_actions, width = yes_RA.shape[1], feature_RF.shape[1]
        mean_F, scale_F = feature_RF.mean(0), np.maximum(feature_RF.std(0), _MIN_SCALE)
        x_RG = np.concatenate([(feature_RF - mean_F) / scale_F, np.ones((len(feature_RF), 1))], 1)
        plain_AF = _plain_weights(num_actions, width, past_rates)
        prior_AG = np.concatenate([plain_AF * scale_F, plain_AF @ mean_F[:, None]], 1)
        if not past_rates:  # nothing but the constant says how often an action happens
            rate_A = ((yes_RA & known_RA).sum(0) + 0.5) / (known_RA.sum(0) + 1.0)
            prior_AG[:, -1] = np.log(rate_A / (1 - rate_A))
        penalty_GG = np.diag(np.full(width + 1, _PENALTY))
        found_AG = [
            fit_logistic(x_RG[known_R], yes_R[known_R], prior_G, penalty_GG)
            for yes_R, known_R, prior_G in zip(yes_RA.T, known_RA.T, prior_AG, strict=True)
        ]
        weight_AG = torch.from_numpy(np.stack(found_AG)).float()
        return cls(
            torch.from_numpy(mean_F).float(), torch.from_numpy(scale_F).float(), weight_AG[:, :-1], weight_AG[:, -1]
        )


def _plain_weights(num_actions: int, width: int, past_rates: bool) -> NDArray[np.float64]:
    """[A, F] weights that make an action's own odds a forecast without any training; other features have none."""
    plain_AF = np.zeros((num_actions, width))
    if past_rates:
        eye = np.eye(num_actions)
        rates_AF = np.concatenate([_PLAIN.get(group, 0.0) * eye for group in GROUPS], 1)
        plain_AF[:, : rates_AF.shape[1]] = rates_AF
    return plain_AF
