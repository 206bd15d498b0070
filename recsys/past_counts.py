"""Counts of past events by what past rates are made of: an item, a user, a surface, an item on a surface, and all.

Training, validation and test count in an event log (:class:`PastLog`); serving counts everything that is known
(:class:`PastTable`). An event whose surface is unknown counts for the whole and for its item.

Suffixes: N = events, B = rows asked for, X = counts (*yes* of every action, then *recorded*), K = keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from recsys.errors import InputError
from recsys.event_counts import EventCounts, action_counts
from recsys.events import EventLog, History

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = [
    "GROUPS",
    "PastLog",
    "PastSource",
    "PastTable",
    "event_owners",
    "group_keys",
    "history_counts",
    "training_mask",
]

GROUPS = ("all", "surface", "item", "user", "item_surface")
"""What the past is counted over."""

Ints = NDArray[np.int64]
Counts = NDArray[np.int32]


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
            key_N = group_keys(group, log.item, log.surface, self.num_surfaces)
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
            key_N = group_keys(group, log.item, log.surface, num_surfaces)
            keep_N = key_N >= 0
            keys_K, place_N = np.unique(key_N[keep_N], return_inverse=True)
            bits_NX = action_counts(log.yes[keep_N], log.known[keep_N], num_actions)
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
    bits_NX = action_counts(yes_N, known_N, num_actions)
    total_NX = np.zeros((len(bits_NX) + 1, bits_NX.shape[1]), dtype=np.int64)
    np.cumsum(bits_NX, axis=0, out=total_NX[1:])
    counts: Ints = total_NX[end_B] - total_NX[np.concatenate([[0], end_B[:-1]])]
    return counts


def group_keys(group: str, item_N: Ints, surface_N: Ints, num_surfaces: int) -> Ints:
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
