"""The exact belief over a user's hidden type, by the forward algorithm.

Suffixes: V = visits, U = users, Z = types, A = actions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.pipelines.simulate.visits import PROBE, SEARCH, Memory, Visits
from recsys.pipelines.simulate.world import World

__all__ = ["action_log_likelihood", "forward_beliefs"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def forward_beliefs(world: World, visits: Visits) -> Floats:
    """[V, Z] probability of each type at every visit given the user's events strictly before it.

    Probes leave no event, so they change nothing for later visits.
    """
    config = world.config
    belief_VZ = np.empty((len(visits), config.num_types))
    belief_UZ = np.full((config.num_users, config.num_types), 1 / config.num_types)
    before_U = np.full(config.num_users, -1)
    memory = Memory(config.num_users, config.num_items)
    by_step = np.argsort(visits.step, kind="stable")
    for at in np.split(by_step, np.searchsorted(visits.step[by_step], np.arange(1, visits.step.max(initial=0) + 1))):
        user = visits.user[at]
        gap = np.where(before_U[user] < 0, 0, visits.time[at] - before_U[user])
        belief_QZ = np.einsum("qz,qzy->qy", belief_UZ[user], world.drift(gap))
        belief_VZ[at] = belief_QZ
        logged = visits.kind[at] != PROBE
        at, user, belief_QZ = at[logged], user[logged], belief_QZ[logged]
        log_QZ = action_log_likelihood(world, visits, at)
        search = np.flatnonzero(visits.kind[at] == SEARCH)
        log_QZ[search] += np.log(
            world.search_likelihood(
                visits.item_VK[at[search], 0], memory.last_U[user[search]], memory.seen_UI[user[search]]
            )
        )
        belief_QZ = belief_QZ * np.exp(log_QZ - log_QZ.max(1, keepdims=True))
        belief_UZ[user] = belief_QZ / belief_QZ.sum(1, keepdims=True)
        before_U[user] = visits.time[at]
        memory.add(user, visits.item_VK[at], visits.yes_VKA[at])
    return belief_VZ


def action_log_likelihood(world: World, visits: Visits, at: Ints) -> Floats:
    """[Q, Z] log probability of all the actions of visits, for each type."""
    item_QK = visits.item_VK[at]
    odds_QKZA = world.action_log_odds(item_QK, visits.surface[at][:, None], np.arange(item_QK.shape[1]))
    sign_QKA = np.where(visits.yes_VKA[at], 1.0, -1.0)
    log_QKZA = -np.logaddexp(0, -sign_QKA[:, :, None, :] * odds_QKZA)
    log_QKZA[visits.kind[at] == SEARCH, ..., 0] = 0.0  # the click after a search is certain
    log_QKZA[item_QK < 0] = 0.0
    return log_QKZA.sum((1, 3))
