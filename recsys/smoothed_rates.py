"""Smoothed rates of actions as log-odds, and back.

Suffixes: B = rows, X = counts (*yes* of every action, then *recorded*), A = actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STRENGTH", "overall_odds", "rate_of", "smoothed_odds"]

STRENGTH = 20.0
"""Events at the rate of the wider group that a rate is smoothed with."""
_LEAST = 1e-5

Floats = NDArray[np.float64]


def smoothed_odds(counts_BX: NDArray[Any], prior_BA: Floats | float, strength: float = STRENGTH) -> Floats:
    """[B, A] log-odds of rates, ``strength`` further events having the prior rate.

    >>> smoothed_odds(np.array([[3, 4]]), 0.5, 2.0).round(4)  # ln((3 + 1) / (1 + 1))
    array([[0.6931]])
    """
    num_actions = counts_BX.shape[1] // 2
    yes_BA, known_BA = counts_BX[:, :num_actions], counts_BX[:, num_actions:]
    rate_BA = np.clip((yes_BA + strength * prior_BA) / (known_BA + strength), _LEAST, 1 - _LEAST)
    odds_BA: Floats = np.log(rate_BA / (1 - rate_BA))
    return odds_BA


def overall_odds(counts_BX: NDArray[Any]) -> Floats:
    """[B, A] log-odds of the rates of all events, which lean on nothing wider."""
    return smoothed_odds(counts_BX, 0.5, 1.0)


def rate_of(odds: Floats) -> Floats:
    """Rates of log-odds."""
    return 1.0 / (1.0 + np.exp(-odds))
