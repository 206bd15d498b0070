"""Past rates: how often each action followed before, of an item, a user, a surface, an item on a surface, and overall.

Every figure rests on events strictly before a time, so a label is never in its own feature. Training, validation and
test count in an event log (:class:`PastLog`); serving counts everything that is known (:class:`PastTable`). An event
whose surface is unknown counts for the whole and for its item; a request without a surface reads these two in the
place of the surface's figures.

Suffixes: N = events, B = rows asked for, X = counts (*yes* of every action, then *recorded*), A = actions,
F = features, K = keys, C = candidates of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from recsys.errors import InputError
from recsys.events import EventLog, History

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = [
    "GROUPS",
    "COUNTED",
    "EventCounts",
    "PastLog",
    "PastSource",
    "PastTable",
    "event_owners",
    "mask_bits",
    "history_counts",
    "log_features",
    "past_features",
    "past_tensor",
    "past_width",
    "training_mask",
    "without_surface",
]

GROUPS = ("all", "surface", "item", "user", "item_surface")
"""What the past is counted over. Features: [A] log-odds per group in this order, then ln(1 + events) of the last
three."""
COUNTED = ("item", "user", "item_surface")
STRENGTH = 20.0
"""Events at the rate of the wider group that a rate is smoothed with."""

Ints = NDArray[np.int64]
Counts = NDArray[np.int32]


def past_width(num_actions: int) -> int:
    """Number of features.

    >>> past_width(2)
    13
    """
    return len(GROUPS) * num_actions + len(COUNTED)


def mask_bits(mask_N: Ints, num_actions: int) -> NDArray[np.bool_]:
    """[N, A] bits of action masks."""
    return (mask_N[:, None] >> np.arange(num_actions) & 1).astype(bool)


def _both_bits(yes_N: Ints, known_N: Ints, num_actions: int) -> NDArray[np.bool_]:
    return np.concatenate([mask_bits(yes_N, num_actions), mask_bits(known_N, num_actions)], axis=1)


class EventCounts:
    """Counts over the events of a key before a time, by two searches in the events sorted by (key, time).

    Args:
        key_N: what the events are counted by, not negative. time_N: when they happened.
        yes_N, known_N: action masks.
        distinct: the distinct times, sorted, where the caller has them.
    """

    def __init__(
        self, key_N: Ints, time_N: Ints, yes_N: Ints, known_N: Ints, num_actions: int, distinct: Ints | None = None
    ) -> None:
        # Times become ranks, so that (key, time) fits one integer whatever the unit of time.
        self._distinct = np.unique(time_N) if distinct is None else distinct
        self._ranks = len(self._distinct) + 1
        code_N = key_N * self._ranks + np.searchsorted(self._distinct, time_N)
        order_N = np.argsort(code_N, kind="stable")
        self._code_N = code_N[order_N]
        self._total_NX = np.zeros((len(key_N) + 1, 2 * num_actions), dtype=np.int32)
        bits_NX = _both_bits(yes_N[order_N], known_N[order_N], num_actions)
        np.cumsum(bits_NX, axis=0, dtype=np.int32, out=self._total_NX[1:])

    def before(self, key_B: Ints, time_B: Ints) -> Counts:
        """[B, X] events of each key strictly before each time; zero for a negative key."""
        low_B = np.searchsorted(self._code_N, key_B * self._ranks)
        high_B = np.searchsorted(self._code_N, key_B * self._ranks + np.searchsorted(self._distinct, time_B))
        counts: Counts = self._total_NX[high_B] - self._total_NX[low_B]
        return counts


class PastSource(Protocol):
    """Where counts come from."""

    num_actions: int
    num_surfaces: int

    def counts(self, group: str, key_B: Ints, time_B: Ints) -> Counts:
        """[B, X] events of each key of a group; a source of everything known ignores the time."""
        ...


class PastLog:
    """Counts strictly before any time.

    Args:
        log: all events. shared_N: [N] which of them other users may know of; None = all.
    """

    def __init__(
        self, log: EventLog, num_actions: int, num_surfaces: int, shared_N: NDArray[np.bool_] | None = None
    ) -> None:
        self.num_actions, self.num_surfaces = num_actions, num_surfaces
        self._log, self._shared_N = log, shared_N
        self._distinct = np.unique(log.timestamp)
        self._groups: dict[str, EventCounts] = {}

    @classmethod
    def of(cls, dataset: Dataset) -> PastLog:
        """Counts in a dataset: a leave-one-out split shares the training events only; a split by time needs no such
        rule, since whatever lies before a request was known then.

        Raises:
            InputError: the timestamps only count, so that nothing is before or after anything of another user.
        """
        manifest = dataset.manifest
        if manifest.clock != "real":
            raise InputError(
                f"{dataset.path}: past rates need a real clock, and these timestamps are an order; leave out "
                "--model.past_rates, or prepare the data with --clock real if they are times"
            )
        shared_N = training_mask(dataset) if manifest.split["kind"] == "leave-one-out" else None
        return cls(dataset.events, len(manifest.actions), len(manifest.surfaces), shared_N)

    def counts(self, group: str, key_B: Ints, time_B: Ints) -> Counts:
        """[B, X] events of each key strictly before each time."""
        if group not in self._groups:
            self._groups[group] = self._counted(group)
        return self._groups[group].before(key_B, time_B)

    def _counted(self, group: str) -> EventCounts:
        log, keep_N = self._log, np.ones(len(self._log), dtype=np.bool_)
        if group == "user":
            key_N = event_owners(log)
        else:
            key_N = _keys(group, log.item, log.surface, self.num_surfaces)
            keep_N = key_N >= 0 if self._shared_N is None else self._shared_N & (key_N >= 0)
        return EventCounts(
            key_N[keep_N],
            log.timestamp[keep_N],
            log.yes[keep_N],
            log.known[keep_N],
            self.num_actions,
            self._distinct,
        )


class PastTable:
    """Counts of everything known, as plain arrays: what a bundle serves with."""

    def __init__(self, num_actions: int, num_surfaces: int, groups: dict[str, tuple[Ints, Counts]]) -> None:
        """Take over tables: per group sorted keys [K] and their counts [K, X]."""
        self.num_actions, self.num_surfaces = num_actions, num_surfaces
        self._groups = groups

    @classmethod
    def build(cls, log: EventLog, num_actions: int, num_surfaces: int) -> PastTable:
        """Count all events of a log."""
        groups = {}
        for group in GROUPS:
            if group == "user":  # a request brings its user's counts with its history
                continue
            key_N = _keys(group, log.item, log.surface, num_surfaces)
            keep_N = key_N >= 0
            keys_K, place_N = np.unique(key_N[keep_N], return_inverse=True)
            bits_NX = _both_bits(log.yes[keep_N], log.known[keep_N], num_actions)
            columns = [np.bincount(place_N, weights=bits_N, minlength=len(keys_K)) for bits_N in bits_NX.T]
            groups[group] = (keys_K, np.stack(columns, 1).astype(np.int32))
        return cls(num_actions, num_surfaces, groups)

    def counts(self, group: str, key_B: Ints, time_B: Ints) -> Counts:
        """[B, X] all events of each key, whatever the time."""
        keys_K, counts_KX = self._groups[group]
        if not len(keys_K):
            return np.zeros((len(key_B), 2 * self.num_actions), dtype=np.int32)
        place_B = np.minimum(np.searchsorted(keys_K, key_B), len(keys_K) - 1)
        found: Counts = counts_KX[place_B] * (keys_K[place_B] == key_B)[:, None]
        return found

    def save(self, path: Path) -> None:
        """Write one file of plain arrays."""
        arrays = {"shape": np.array([self.num_actions, self.num_surfaces])}
        for group, (keys_K, counts_KX) in self._groups.items():
            arrays |= {f"{group}.keys": keys_K, f"{group}.counts": np.ascontiguousarray(counts_KX)}
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> PastTable:
        """Read what :meth:`save` wrote."""
        arrays = load_file(path)
        num_actions, num_surfaces = (int(size) for size in arrays["shape"])
        groups = {g: (arrays[f"{g}.keys"], arrays[f"{g}.counts"]) for g in GROUPS if g != "user"}
        return cls(num_actions, num_surfaces, groups)


def history_counts(histories: Sequence[History], num_actions: int) -> Ints:
    """[B, X] a user's own counts over a whole history."""
    end_B = np.cumsum([len(history) for history in histories], dtype=np.int64)
    yes_N, known_N = (np.concatenate([getattr(h, name) for h in histories]) for name in ("yes", "known"))
    bits_NX = _both_bits(yes_N, known_N, num_actions)
    total_NX = np.zeros((len(bits_NX) + 1, bits_NX.shape[1]), dtype=np.int64)
    np.cumsum(bits_NX, axis=0, out=total_NX[1:])
    counts: Ints = total_NX[end_B] - total_NX[np.concatenate([[0], end_B[:-1]])]
    return counts


def past_features(
    source: PastSource, item_B: Ints, surface_B: Ints, time_B: Ints, user_BX: NDArray[np.integer]
) -> NDArray[np.float32]:
    """[B, F] features of rows; see :data:`GROUPS`.

    A rate leans on a wider one where events are few: the surface's, the item's and the user's on that of all events,
    the item's on a surface on that of the surface. (Leaning on the item's odds too says the same thing twice: a
    logistic regression on the features ranked KuaiRand's slates worse, GAUC of long_view .630 against .639.)

    Args:
        source: of the counts. item_B: an item without events, or -1, stands at the overall rate.
        surface_B: 0 = unknown. time_B: of the request. user_BX: the users' own counts.
    """
    num_actions = source.num_actions
    odds: dict[str, NDArray[np.float64]] = {}
    events: dict[str, NDArray[np.float64]] = {}

    def add(group: str, counts_BX: NDArray[np.integer], prior_BA: NDArray[np.float64], strength: float) -> None:
        yes_BA, known_BA = counts_BX[:, :num_actions], counts_BX[:, num_actions:]
        rate_BA = (yes_BA + strength * prior_BA) / (known_BA + strength)
        odds[group] = _log_odds(rate_BA)
        events[group] = np.log1p(known_BA.max(1, initial=0).astype(np.float64))

    keys = {g: _keys(g, item_B, surface_B, source.num_surfaces) for g in GROUPS if g != "user"}
    add("all", source.counts("all", keys["all"], time_B), np.full((len(item_B), num_actions), 0.5), 1.0)
    overall_BA = _rate(odds["all"])
    add("surface", source.counts("surface", keys["surface"], time_B), overall_BA, STRENGTH)
    item_BX = source.counts("item", keys["item"], time_B)
    add("item", item_BX, overall_BA, STRENGTH)
    add("user", user_BX, overall_BA, STRENGTH)
    placed_BX = source.counts("item_surface", keys["item_surface"], time_B)
    add("item_surface", placed_BX, _rate(odds["surface"]), STRENGTH)
    nowhere_B = surface_B <= 0
    odds["surface"][nowhere_B] = odds["all"][nowhere_B]
    odds["item_surface"][nowhere_B] = odds["item"][nowhere_B]
    events["item_surface"][nowhere_B] = events["item"][nowhere_B]
    columns = [odds[group] for group in GROUPS] + [events[group][:, None] for group in COUNTED]
    return np.concatenate(columns, axis=1).astype(np.float32)


def without_surface(feature_BF: Tensor, hidden_B: Tensor) -> Tensor:
    """The same features as a request sees them that does not say its surface, in the rows where ``hidden_B``."""
    num_actions = (feature_BF.shape[-1] - len(COUNTED)) // len(GROUPS)
    all_, surface, item, user, _ = feature_BF[..., : len(GROUPS) * num_actions].split(num_actions, -1)
    counted = feature_BF[..., len(GROUPS) * num_actions :]
    blind = torch.cat([all_, all_, item, user, item, counted[..., :2], counted[..., :1]], -1)
    return torch.where(hidden_B[..., None], blind, feature_BF)


def past_tensor(source: PastSource, user_BX: Tensor, item_BC: Tensor, at_B: Tensor, surface_BC: Tensor) -> Tensor:
    """[B, C, F] features of the candidates of requests, on their device.

    Args:
        user_BX: the users' own counts, as a user state holds them.
    """
    shape = item_BC.shape
    item_B, surface_B = (part.reshape(-1).cpu().numpy() for part in (item_BC, surface_BC))
    time_B = at_B.cpu().numpy().repeat(shape[1])
    own_BX = user_BX.cpu().numpy().repeat(shape[1], axis=0)
    feature_BF = past_features(source, item_B, surface_B, time_B, own_BX)
    return torch.from_numpy(feature_BF).view(*shape, -1).to(item_BC.device)


def log_features(past: PastLog, user_B: Ints, item_B: Ints, surface_B: Ints, time_B: Ints) -> NDArray[np.float32]:
    """[B, F] features of rows as of their times, the users' own counts from the log too."""
    return past_features(past, item_B, surface_B, time_B, past.counts("user", user_B, time_B))


def _keys(group: str, item_N: Ints, surface_N: Ints, num_surfaces: int) -> Ints:
    """Keys of events or rows; -1 where the group does not hold them."""
    if group == "all":
        return np.zeros_like(item_N)
    if group == "item":
        return item_N
    if group == "surface":
        return np.where(surface_N > 0, surface_N, -1)
    return np.where((surface_N > 0) & (item_N >= 0), item_N * num_surfaces + surface_N, -1)


def event_owners(log: EventLog) -> Ints:
    """[N] user of every event."""
    return np.repeat(np.arange(len(log.offsets) - 1, dtype=np.int64), np.diff(log.offsets))


def training_mask(dataset: Dataset) -> NDArray[np.bool_]:
    """[N] whether an event trains."""
    offsets = dataset.events.offsets
    place_N = np.arange(len(dataset.events)) - np.repeat(offsets[:-1], np.diff(offsets))
    trains: NDArray[np.bool_] = place_N < np.repeat(dataset.train_end, np.diff(offsets))
    return trains


def _rate(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-odds))


def _log_odds(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    rate = np.clip(rate, 1e-5, 1 - 1e-5)
    odds: NDArray[np.float64] = np.log(rate / (1 - rate))
    return odds
