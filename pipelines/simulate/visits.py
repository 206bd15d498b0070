"""What users do in a made world: visits, all users at once.

Suffixes: V = visits, U = users, K = places of a slate, A = actions, Z = types, I = items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.pipelines.simulate.world import ACTIONS, NEGATIVE, SURFACES, World

__all__ = ["PROBE", "ROW_SECONDS", "SEARCH", "SLATE", "Memory", "Visits", "draw_visits"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SEARCH, SLATE, PROBE = 0, 1, 2
"""Kinds of visits: the user's own search; a slate whose rows enter the interactions; a slate that does not."""
ROW_SECONDS = 4
"""A slate's rows are seen one after another, this far apart."""
_POSITIVE = np.array([name != NEGATIVE for name in ACTIONS])


@dataclass(frozen=True, slots=True)
class Visits:
    """All visits, sorted by (user, time)."""

    user: Ints
    step: Ints
    """Number of the visit among the user's."""
    kind: Ints
    time: Ints
    type: Ints
    """The hidden type at that moment."""
    surface: Ints
    """Index into :data:`~recsys.pipelines.simulate.world.SURFACES`."""
    item_VK: Ints
    """In the order shown; a search has one item and -1 in the other places."""
    yes_VKA: Bools
    valid_at_U: Ints
    """Visit that is the user's validation target, -1 = none."""
    test_at_U: Ints

    def __len__(self) -> int:
        return len(self.user)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All parts by name."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in self.__dataclass_fields__}


class Memory:
    """What the log remembers of every user before a visit: the items met and the last positive one."""

    def __init__(self, num_users: int, num_items: int) -> None:
        self.seen_UI: Bools = np.zeros((num_users, num_items), dtype=bool)
        self.last_U: Ints = np.full(num_users, -1)

    def add(self, user: Ints, item_QK: Ints, yes_QKA: Bools) -> None:
        """Take in the rows of one visit of each ``user``; probes must be left out."""
        for place in range(item_QK.shape[1]):
            item = item_QK[:, place]
            there = item >= 0
            self.seen_UI[user[there], item[there]] = True
            liked = there & yes_QKA[:, place, _POSITIVE].any(-1)
            self.last_U[user[liked]] = item[liked]


def draw_visits(world: World) -> Visits:
    """Draw every user's visits; the same world gives the same visits."""
    config = world.config
    rng = np.random.default_rng([config.seed, 2])
    kind_UT, valid_at_U, test_at_U = _plan(world, rng)
    num_users, num_steps = kind_UT.shape
    time_UT = _times(world, kind_UT, rng)
    memory = Memory(num_users, config.num_items)
    type_UT = np.zeros((num_users, num_steps), dtype=np.int64)
    surface_UT = np.where(kind_UT == SEARCH, 0, rng.integers(1, len(SURFACES), kind_UT.shape))
    item_UTK = np.full((num_users, num_steps, config.slate_size), -1)
    yes_UTKA = np.zeros((num_users, num_steps, config.slate_size, len(ACTIONS)), dtype=bool)
    type_U: Ints = rng.integers(0, config.num_types, size=(num_users,))
    for step in range(num_steps):
        if step > 0:
            drift_UZ = world.drift(time_UT[:, step] - time_UT[:, step - 1])[np.arange(num_users), type_U]
            type_U = _draw(drift_UZ, rng)
        type_UT[:, step] = type_U
        at = np.flatnonzero(kind_UT[:, step] == SEARCH)
        belief_QZ = np.eye(config.num_types)[type_U[at]]
        item_UTK[at, step, 0] = _draw(world.search_weights(memory.last_U[at], belief_QZ, memory.seen_UI[at]), rng)
        at = np.flatnonzero(kind_UT[:, step] > SEARCH)
        shuffled = kind_UT[at, step] == PROBE
        item_UTK[at, step] = _fill_slates(world, memory, at, surface_UT[at, step], shuffled, rng)
        at = np.flatnonzero(kind_UT[:, step] >= SEARCH)
        item_QK, surface_Q1 = item_UTK[at, step], surface_UT[at, step][:, None]
        prob_QKZA = world.action_probabilities(item_QK, surface_Q1, np.arange(config.slate_size))
        prob_QKA = prob_QKZA[np.arange(len(at)), :, type_U[at], :]
        yes_UTKA[at, step] = (rng.random(prob_QKA.shape) < prob_QKA) & (item_QK >= 0)[:, :, None]
        logged = at[kind_UT[at, step] != PROBE]
        memory.add(logged, item_UTK[logged, step], yes_UTKA[logged, step])
    user, place = np.nonzero(kind_UT >= SEARCH)
    row_UT = np.full(kind_UT.shape, -1)
    row_UT[user, place] = np.arange(len(user))
    return Visits(
        user=user,
        step=place,
        kind=kind_UT[user, place],
        time=time_UT[user, place],
        type=type_UT[user, place],
        surface=surface_UT[user, place],
        item_VK=item_UTK[user, place],
        yes_VKA=yes_UTKA[user, place],
        valid_at_U=row_UT[np.arange(num_users), valid_at_U],
        test_at_U=row_UT[np.arange(num_users), test_at_U],
    )


def _plan(world: World, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Kind of every visit [U, T] (-1 = none) and the steps of the two targets.

    A user's log ends with a search (the validation target), probes, a search (the test target) and probes. Their
    feedback is in the impressions alone, so the two searches stay the last positive events.
    """
    config = world.config
    num_users, held_out = config.num_users, config.held_out_probes
    length_U = rng.integers(config.min_steps, config.max_steps + 1, num_users)
    draw_UT = rng.random((num_users, config.max_steps + 2 + 2 * held_out))
    kind_UT = np.where(draw_UT < config.slate_share, SLATE, SEARCH)
    kind_UT[draw_UT > 1 - config.probe_share] = PROBE
    kind_UT[:, 0] = SEARCH
    after_UT = np.arange(kind_UT.shape[1])[None, :] - length_U[:, None]
    kind_UT[after_UT >= 0] = PROBE
    kind_UT[(after_UT == 0) | (after_UT == 1 + held_out)] = SEARCH
    kind_UT[after_UT >= 2 + 2 * held_out] = -1
    return kind_UT, length_U, length_U + 1 + held_out


def _times(world: World, kind_UT: Ints, rng: np.random.Generator) -> Ints:
    """Unix seconds of every visit: sessions of visits minutes apart, days between sessions."""
    config = world.config
    gap_UT = 60 * rng.exponential(config.visit_gap_minutes, kind_UT.shape)
    fresh_UT = rng.random(kind_UT.shape) < config.session_share
    gap_UT += fresh_UT * 86400 * rng.exponential(config.session_gap_days, kind_UT.shape)
    gap_UT += 60 + ROW_SECONDS * config.slate_size
    gap_UT[:, 0] = 86400 * config.start_days * rng.random(len(kind_UT))
    return config.start + np.cumsum(gap_UT.astype(np.int64), axis=1)


def _draw(weight_QN: Floats, rng: np.random.Generator) -> Ints:
    """One index of each row, by its weights."""
    total_QN = np.cumsum(weight_QN, axis=1)
    mark_Q = rng.random(len(weight_QN)) * total_QN[:, -1]
    return np.minimum((total_QN <= mark_Q[:, None]).sum(1), weight_QN.shape[1] - 1)


def _fill_slates(
    world: World, memory: Memory, user: Ints, surface: Ints, shuffled: Bools, rng: np.random.Generator
) -> Ints:
    """[Q, K] items never met before, drawn without knowing the type.

    ``feed`` draws by tempered popularity; ``related`` also favours the last positive item's cluster. Logged slates
    show popular items first, up to noise; probes are in random order.
    """
    config = world.config
    log_QI = np.broadcast_to(0.5 * np.log(world.popularity_I), (len(user), config.num_items)).copy()
    last = memory.last_U[user]
    near_QI = (world.cluster_I[last][:, None] == world.cluster_I[None, :]) & (last >= 0)[:, None]
    log_QI += 2.0 * (near_QI & (surface == 2)[:, None])
    log_QI += rng.gumbel(size=log_QI.shape)
    log_QI[memory.seen_UI[user]] = -np.inf
    item_QK = np.argpartition(-log_QI, config.slate_size - 1, axis=1)[:, : config.slate_size]
    order_QK = np.log(world.popularity_I)[item_QK] * ~shuffled[:, None] + rng.gumbel(size=item_QK.shape)
    return np.take_along_axis(item_QK, np.argsort(-order_QK, axis=1), axis=1)
