"""The choice of a page among candidates, one place after the other.

Suffixes: C = candidates, D = width of item vectors, K = places.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.retrieval.rules.noise import uniforms
from recsys.retrieval.rules.rule import MMR, Cap, Explore

__all__ = ["Selection", "select"]

Floats = NDArray[np.float64]
Groups = list[tuple[Hashable, ...]]


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen."""

    places: list[int]
    """Candidates in the order to show them."""
    propensity: list[float]
    """Probability of each choice, given those above it; 1 without chance."""
    num_capped: list[int]
    """Per cap: candidates that it kept out while there was a place to fill."""


def select(
    score_C: Floats,
    item_C: NDArray[np.int64],
    k: int,
    *,
    caps: Sequence[tuple[Cap, Groups]] = (),
    pins: Mapping[int, int] | None = None,
    mmr: MMR | None = None,
    vector_CD: Floats | None = None,
    explore: Explore | None = None,
    key: str = "",
) -> Selection:
    """Choose at most k candidates.

    Pins are counted by caps, and are near to other items, from the start. A candidate is out once one of its groups
    holds its number. Of equal values the first candidate wins.

    Args:
        score_C: [C], those of candidates to choose from in any order.
        item_C: [C] internal ids, which the random numbers belong to.
        k: places.
        caps: rules with the groups of every candidate.
        pins: candidate at a place (from 0); chosen whatever they score.
        mmr, vector_CD: diversity; vectors of length 1 or 0.
        explore, key: chance, and whom it is for.
    """
    pinned = dict(pins or {})
    free_C = np.ones(len(score_C), dtype=np.bool_)
    quota = _Quota(caps, len(score_C))
    free_C[list(pinned.values())] = False
    relevance_C = _scaled(score_C, free_C) if mmr is not None and mmr.scale else score_C
    near_C: Floats | None = None
    for at in pinned.values():
        quota.take(at)
        near_C = _nearer(near_C, vector_CD, at)
    chosen: list[int] = []
    propensity: list[float] = []
    num_capped = [0] * len(caps)
    while len(chosen) < k:
        place = len(chosen)
        if place in pinned:
            chosen.append(pinned.pop(place))
            propensity.append(1.0)
            continue
        at_F = np.flatnonzero(free_C & ~quota.full_C)
        num_capped = quota.counts(free_C)
        if not len(at_F):
            chosen += [pinned[later] for later in sorted(pinned)]
            propensity += [1.0] * len(pinned)
            break
        value_F = relevance_C[at_F]
        if mmr is not None:
            value_F = mmr.lam * value_F - (1 - mmr.lam) * (0.0 if near_C is None else near_C[at_F])
        best, chance = _draw(value_F, item_C[at_F], explore, f"{key}\0{place}")
        at = int(at_F[best])
        chosen.append(at)
        propensity.append(chance)
        free_C[at] = False
        quota.take(at)
        near_C = _nearer(near_C, vector_CD, at)
    return Selection(chosen, propensity, num_capped)


class _Quota:
    """Which candidates the caps leave."""

    def __init__(self, caps: Sequence[tuple[Cap, Groups]], num: int) -> None:
        self.full_C = np.zeros(num, dtype=np.bool_)
        self._full_by = [np.zeros(num, dtype=np.bool_) for _ in caps]
        self._caps = [cap for cap, _ in caps]
        self._groups = [[row or self._alone(cap) for row in rows] for cap, rows in caps]
        self._members: list[dict[Hashable, list[int]]] = []
        for rows in self._groups:
            members: dict[Hashable, list[int]] = {}
            for at, row in enumerate(rows):
                for value in row:
                    members.setdefault(value, []).append(at)
            self._members.append(members)
        self._taken: list[dict[Hashable, int]] = [{} for _ in caps]

    @staticmethod
    def _alone(cap: Cap) -> tuple[Hashable, ...]:
        return ((),) if cap.missing == "group" else ()

    def take(self, at: int) -> None:
        """Count a chosen candidate."""
        for number, cap in enumerate(self._caps):
            taken = self._taken[number]
            for value in self._groups[number][at]:
                taken[value] = taken.get(value, 0) + 1
                if taken[value] == cap.n:
                    self._full_by[number][self._members[number][value]] = True
                    self.full_C |= self._full_by[number]

    def counts(self, free_C: NDArray[np.bool_]) -> list[int]:
        """Per cap, candidates that were not chosen and now cannot be."""
        return [int((full_C & free_C).sum()) for full_C in self._full_by]


def _scaled(score_C: Floats, free_C: NDArray[np.bool_]) -> Floats:
    """Scores from 0 to 1 over the free candidates."""
    if not free_C.any():
        return np.zeros_like(score_C)
    low, high = score_C[free_C].min(), score_C[free_C].max()
    return (score_C - low) / (high - low) if high > low else np.zeros_like(score_C)


def _nearer(near_C: Floats | None, vector_CD: Floats | None, at: int) -> Floats | None:
    """Largest cosine with anything chosen, one more item being chosen."""
    if vector_CD is None:
        return None
    cosine_C: Floats = vector_CD @ vector_CD[at]
    return cosine_C if near_C is None else np.maximum(near_C, cosine_C)


def _draw(value_F: Floats, item_F: NDArray[np.int64], explore: Explore | None, key: str) -> tuple[int, float]:
    """One of some candidates and the probability of that choice."""
    best = int(value_F.argmax())
    if explore is None:
        return best, 1.0
    key = f"{explore.seed}\0{key}"
    noise_F = uniforms(key, item_F)
    if explore.temperature is not None:
        with np.errstate(over="ignore"):
            logit_F = (value_F - value_F.max()) / explore.temperature
        at = int((logit_F - np.log(-np.log(noise_F))).argmax())  # the Gumbel-max trick
        weight_F = np.exp(logit_F)
        return at, float(weight_F[at] / weight_F.sum())
    epsilon = explore.epsilon or 0.0
    coin = float(uniforms(f"{key}\0coin", np.zeros(1, dtype=np.int64))[0])
    at = int(noise_F.argmax()) if coin < epsilon else best
    return at, epsilon / len(value_F) + (1 - epsilon) * (at == best)
