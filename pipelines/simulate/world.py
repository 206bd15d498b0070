"""The parameters of a made world: discrete user types, clustered items, Markov transitions, logistic actions.

Suffixes: I = items, C = clusters, Z = user types, A = actions, S = surfaces, K = places of a slate, M = successors.

The family differs from any transformer on purpose: a user has one of Z hidden types and jumps between them as time
passes; what they look for next depends on the type and on their last positive item; what they do with an item is
logistic in type, cluster, item quality, surface and place. Everything but the type is seen, so the posterior over the
type can be summed exactly.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.pipelines.simulate.topics import TOPICS

__all__ = ["ACTIONS", "NEGATIVE", "SURFACES", "World", "WorldConfig"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ACTIONS = ("click", "like", "share", "hide")
NEGATIVE = "hide"
SURFACES = ("search", "feed", "related")
"""``search``: the user goes to an item on their own; the others show slates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """Everything that shapes a world, its users and its log."""

    num_users: int = 2000
    num_items: int = 600
    seed: int = 0
    num_types: int = 6
    num_clusters: int = 24
    favourites: int = 4
    """Clusters a type looks for most."""
    favourite_share: float = 0.9
    """Share of a type's searches, among those led by taste, that go to its favourites."""
    follow_share: float = 0.3
    """Share of searches that go to the one cluster which follows the last item's cluster for this type."""
    stay_share: float = 0.1
    """Share of searches that stay in the last positive item's cluster."""
    successor_share: float = 0.03
    """Share of searches that go to one of the last positive item's own successors, whatever the type."""
    popular_share: float = 0.1
    """Share of searches that go to popular items."""
    num_successors: int = 1
    popularity_sigma: float = 1.2
    """Standard deviation of log popularity."""
    drift_days: float = 20.0
    """Mean time until a user's type jumps."""
    near_jump_share: float = 0.8
    """Share of jumps that go to one of the two neighbouring types."""
    action_bias: tuple[float, ...] = (-1.0, -2.6, -3.2, -2.6)
    """Per action: log odds of a middling item for a middling type at the first place of ``feed``."""
    action_affinity: tuple[float, ...] = (1.3, 1.5, 1.4, -1.6)
    """Per action: weight of the taste of the type for the cluster."""
    action_quality: tuple[float, ...] = (0.5, 0.6, 0.6, -0.6)
    """Per action: weight of the item's quality, which all types judge alike."""
    shared_taste: float = 0.75
    """Share of the variance of an action's taste that all actions and the searches have in common."""
    related_bias: tuple[float, ...] = (0.4, 0.2, 0.0, -0.3)
    """Per action: what the surface ``related`` adds."""
    search_bias: tuple[float, ...] = (0.0, 1.0, 0.8, -0.5)
    """Per action: what the surface ``search`` adds; there the click is certain."""
    place_bias: float = 0.45
    """What log2(1 + place) takes from the log odds of every action; place 0 is the first."""
    slate_size: int = 6
    min_steps: int = 18
    max_steps: int = 34
    """Visits of a user before the held-out ones: each is a search, a slate or a probe."""
    slate_share: float = 0.22
    """Share of visits that show a slate whose feedback enters the interactions."""
    probe_share: float = 0.1
    """Share of visits that show a probe: a slate in random order that is in the impressions alone."""
    held_out_probes: int = 2
    """Probes after the validation target, and again after the test target."""
    session_gap_days: float = 2.0
    visit_gap_minutes: float = 8.0
    session_share: float = 0.3
    """Share of visits that begin a new session."""
    start: int = 1_700_000_000
    """First second of the log (unix time)."""
    start_days: float = 30.0
    """Users arrive over this many days."""

    def __post_init__(self) -> None:
        if self.num_users < 1:
            raise ValueError(f"num_users must be at least 1, got {self.num_users}")
        if not 2 <= self.num_clusters <= len(TOPICS):
            raise ValueError(f"num_clusters must be 2 to {len(TOPICS)}, got {self.num_clusters}")
        # Nothing is met twice: the longest possible history must leave enough of the catalogue for one more slate.
        longest = (self.max_steps + 3) * self.slate_size
        if self.num_items < max(longest, 2 * self.num_clusters):
            raise ValueError(
                f"num_items must be at least {max(longest, 2 * self.num_clusters)} for up to {self.max_steps} visits "
                f"with slates of {self.slate_size}, got {self.num_items}"
            )
        if not self.favourites <= self.num_clusters:
            raise ValueError(f"favourites must be at most num_clusters, got {self.favourites} > {self.num_clusters}")

    def digest(self) -> str:
        """Hex SHA-256 of all parameters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class World:
    """The drawn parameters. Probabilities of a search before the seen items are taken out, and of actions."""

    config: WorldConfig
    cluster_I: Ints
    popularity_I: Floats
    """Sums to 1."""
    within_I: Floats
    """Probability of an item inside its cluster."""
    quality_I: Floats
    successor_IM: Ints
    taste_ZC: Floats
    """Where a type's searches led by taste go; also where its first search goes."""
    move_ZCC: Floats
    """Cluster of the next search given the type and the cluster of the last positive item; rows sum to the share
    of searches that are led by clusters."""
    affinity_AZC: Floats
    jump_ZZ: Floats
    """Where a jumping type goes."""

    @classmethod
    def draw(cls, config: WorldConfig) -> World:
        """The same config gives the same world."""
        rng = np.random.default_rng([config.seed, 1])
        num_types, num_clusters, num_items = config.num_types, config.num_clusters, config.num_items
        cluster_I = rng.permutation(np.arange(num_items) % num_clusters)
        weight_I = np.exp(config.popularity_sigma * rng.standard_normal(num_items))
        mass_C = np.bincount(cluster_I, weight_I, minlength=num_clusters)
        taste_ZC, liking_ZC = _tastes(config, rng)
        follow_ZC = np.stack([rng.permutation(num_clusters) for _ in range(num_types)])
        led = 1 - config.successor_share - config.popular_share
        free = 1 - config.follow_share - config.stay_share
        move_ZCC = np.broadcast_to(free * taste_ZC[:, None, :], (num_types, num_clusters, num_clusters)).copy()
        move_ZCC[:, np.arange(num_clusters), np.arange(num_clusters)] += config.stay_share
        type_Z1 = np.arange(num_types)[:, None]
        move_ZCC[type_Z1, np.arange(num_clusters)[None, :], follow_ZC] += config.follow_share
        own_AZC = rng.standard_normal((len(ACTIONS), num_types, num_clusters))
        share = config.shared_taste
        affinity_AZC = np.sqrt(share) * liking_ZC + np.sqrt(1 - share) * own_AZC
        jump_ZZ = np.full((num_types, num_types), (1 - config.near_jump_share) / num_types)
        for step in (1, -1):
            jump_ZZ[np.arange(num_types), (np.arange(num_types) + step) % num_types] += config.near_jump_share / 2
        return cls(
            config=config,
            cluster_I=cluster_I,
            popularity_I=weight_I / weight_I.sum(),
            within_I=weight_I / mass_C[cluster_I],
            quality_I=rng.standard_normal(num_items),
            successor_IM=rng.integers(0, num_items, (num_items, config.num_successors)),
            taste_ZC=taste_ZC,
            move_ZCC=led * move_ZCC,
            affinity_AZC=affinity_AZC,
            jump_ZZ=jump_ZZ,
        )

    def drift(self, gap_seconds: Ints) -> Floats:
        """[Q, Z, Z] probabilities that a type becomes another in a gap.

        The type jumps in continuous time, so two gaps in a row are as good as their sum.
        """
        rate, basis_ZZ = np.linalg.eigh(self.jump_ZZ - np.eye(len(self.jump_ZZ)))
        days_Q = np.asarray(gap_seconds, dtype=np.float64) / 86400
        decay_QZ = np.exp(days_Q[:, None] / self.config.drift_days * rate)
        return np.clip(np.einsum("iz,qz,jz->qij", basis_ZZ, decay_QZ, basis_ZZ), 0, None)

    def cluster_lead(self, last: Ints) -> Floats:
        """[Q, Z, C] probability of the next search's cluster (of searches led by clusters) given the last positive
        item, -1 = none yet."""
        led = 1 - self.config.successor_share - self.config.popular_share
        first_ZC = led * self.taste_ZC
        lead_QZC = self.move_ZCC[:, self.cluster_I[last], :].transpose(1, 0, 2)
        return np.where((last < 0)[:, None, None], first_ZC[None], lead_QZC)

    def search_weights(self, last: Ints, belief_QZ: Floats, seen_QI: NDArray[np.bool_]) -> Floats:
        """[Q, I] probabilities of the next search's item under a belief over types; seen items get 0.

        For every type the probabilities of the unseen items are normalised before the belief mixes them.
        """
        lead_QZC, common_QI, norm_QZ = self._search_parts(last, seen_QI)
        share_QZ = belief_QZ / norm_QZ
        led_QC = np.einsum("qz,qzc->qc", share_QZ, lead_QZC)
        return ~seen_QI * (led_QC[:, self.cluster_I] * self.within_I) + common_QI * share_QZ.sum(1)[:, None]

    def search_likelihood(self, item: Ints, last: Ints, seen_QI: NDArray[np.bool_]) -> Floats:
        """[Q, Z] probability that a user of each type searches ``item`` next."""
        lead_QZC, common_QI, norm_QZ = self._search_parts(last, seen_QI)
        row = np.arange(len(item))
        led_QZ = lead_QZC[row, :, self.cluster_I[item]] * self.within_I[item][:, None]
        return (led_QZ + common_QI[row, item][:, None]) / norm_QZ

    def _search_parts(self, last: Ints, seen_QI: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
        """Cluster leads [Q, Z, C], the common part of unseen items [Q, I] and the mass of unseen items [Q, Z]."""
        lead_QZC = self.cluster_lead(last)
        common_QI = self._common(last) * ~seen_QI
        member_IC = np.zeros((len(self.cluster_I), self.config.num_clusters))
        member_IC[np.arange(len(self.cluster_I)), self.cluster_I] = self.within_I
        free_QC = ~seen_QI @ member_IC
        return lead_QZC, common_QI, np.einsum("qzc,qc->qz", lead_QZC, free_QC) + common_QI.sum(1)[:, None]

    def _common(self, last: Ints) -> Floats:
        """[Q, I] the part of a search's probability that all types share: popularity and successors."""
        config = self.config
        share = np.where(last < 0, config.popular_share + config.successor_share, config.popular_share)
        common_QI = share[:, None] * self.popularity_I
        rows = np.flatnonzero(last >= 0)
        for place in range(config.num_successors):
            np.add.at(
                common_QI,
                (rows, self.successor_IM[last[rows], place]),
                config.successor_share / config.num_successors,
            )
        return common_QI

    def action_log_odds(self, item: Ints, surface: int | Ints, place: int | Ints) -> Floats:
        """[..., Z, A] log odds of each action for each type.

        Args:
            item: [...] items.
            surface: index into :data:`SURFACES`, one for all or one for each.
            place: place in the slate, 0 = first; of no effect on the surface ``search``.
        """
        config = self.config
        surface = np.broadcast_to(np.asarray(surface), item.shape)
        place = np.broadcast_to(np.asarray(place), item.shape)
        surface_SA = np.array([config.search_bias, np.zeros(len(ACTIONS)), config.related_bias])
        shown = np.where(surface == 0, 0.0, np.log2(1.0 + place))
        base = np.array(config.action_bias) + self.quality_I[item][..., None] * np.array(config.action_quality)
        base = base + surface_SA[surface] - config.place_bias * shown[..., None]
        taste = np.moveaxis(self.affinity_AZC, 0, -1)[:, self.cluster_I[item], :]
        taste = np.moveaxis(taste, 0, -2) * np.array(config.action_affinity)
        return base[..., None, :] + taste

    def action_probabilities(self, item: Ints, surface: int | Ints, place: int | Ints) -> Floats:
        """[..., Z, A]; on the surface ``search`` the click is certain."""
        prob = 1 / (1 + np.exp(-self.action_log_odds(item, surface, place)))
        surface = np.broadcast_to(np.asarray(surface), item.shape)
        prob[..., 0] = np.where((surface == 0)[..., None], 1.0, prob[..., 0])
        return prob

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All drawn parameters by name."""
        return {
            name: np.ascontiguousarray(getattr(self, name)) for name in self.__dataclass_fields__ if name != "config"
        }


def _tastes(config: WorldConfig, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Where each type's searches go, and how it likes each cluster (mean 0, variance 1 over clusters).

    Types take their favourites from one shuffled round of the clusters, so that they overlap little and every cluster
    is somebody's.
    """
    num_types, num_clusters = config.num_types, config.num_clusters
    order = rng.permutation(num_clusters)
    taste_ZC = np.full((num_types, num_clusters), (1 - config.favourite_share) / num_clusters)
    liking_ZC = 0.4 * rng.standard_normal((num_types, num_clusters))
    stride = num_clusters / num_types
    for kind in range(num_types):
        first = int(round(kind * stride))
        favourite = order[(first + np.arange(config.favourites)) % num_clusters]
        taste_ZC[kind, favourite] += config.favourite_share * rng.dirichlet(np.full(config.favourites, 3.0))
        liking_ZC[kind, favourite] += 1.6
    liking_ZC -= liking_ZC.mean(1, keepdims=True)
    return taste_ZC, liking_ZC / liking_ZC.std(1, keepdims=True)
