"""Lift: how much better or worse an item did than its users and its surfaces led to expect.

The plain rate of an item also says who met it and where. So every event is first given the probability that it has
without its item, log-odds of the surface + log-odds of the user − log-odds of all, from what was before it. The lift of
an item is one Newton step of an item effect from there: Σ (happened − expected) / (Σ expected · (1 − expected) + m),
on the scale of log-odds and 0 for an item without events. On KuaiRand it raised the GAUC of a logistic regression on
past rates by .003 for click and by .006 for long_view (30,000 rows of late training slates).

Sums are kept in fixed point, so that they are exact in any order: what happens later changes no bit of them.

Suffixes: N = events, B = rows asked for, X = counts, or for lifts *surprise* of every action, then *variance*;
A = actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.event_counts import mask_bits
from recsys.smoothed_rates import overall_odds, rate_of, smoothed_odds

__all__ = ["item_lift", "surprise"]

_UNIT = 1 << 20
_STRENGTH = 2.0
"""Variance that a lift is shrunk with: some 10 events of an action with a rate of a quarter."""

Ints = NDArray[np.int64]


def surprise(
    all_NX: NDArray[Any],
    surface_NX: NDArray[Any],
    user_NX: NDArray[Any],
    nowhere_N: NDArray[np.bool_],
    yes_N: Ints,
    known_N: Ints,
) -> Ints:
    """[N, X] happened − expected, and expected · (1 − expected), of every event and action; 0 where not recorded.

    Args:
        all_NX, surface_NX, user_NX: counts from before the event. nowhere_N: the surface of the event is not known.
        yes_N, known_N: action masks.
    """
    num_actions = all_NX.shape[1] // 2
    all_NA = overall_odds(all_NX)
    prior_NA = rate_of(all_NA)
    surface_NA = np.where(nowhere_N[:, None], all_NA, smoothed_odds(surface_NX, prior_NA))
    expected_NA = rate_of(surface_NA + smoothed_odds(user_NX, prior_NA) - all_NA)
    parts = [mask_bits(yes_N, num_actions) - expected_NA, expected_NA * (1 - expected_NA)]
    recorded_NA = mask_bits(known_N, num_actions)
    return np.concatenate([np.rint(part * recorded_NA * _UNIT).astype(np.int64) for part in parts], 1)


def item_lift(sum_BX: Ints) -> NDArray[np.float64]:
    """[B, A] lifts from sums of :func:`surprise`."""
    surprise_BA, variance_BA = np.split(sum_BX / _UNIT, 2, axis=1)
    lift_BA: NDArray[np.float64] = surprise_BA / (variance_BA + _STRENGTH)
    return lift_BA
