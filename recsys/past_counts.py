"""Counts of past events by what past rates are made of: an item, a user, a surface, either on a surface, and all.

Training, validation and test count in an event log (:class:`PastLog`); serving counts everything that is known
(:class:`PastTable`). An event whose surface is unknown counts for the whole and for its item.

Suffixes: N = events, B = rows asked for, X = counts (*yes* of every action, then *recorded*), K = keys, Y = counts of
every surface: those of all events first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from recsys.bundle_checks import check_counts
from recsys.errors import InputError
from recsys.event_counts import EventCounts, SumsBefore, action_counts
from recsys.events import EventLog, History
from recsys.past_lift import surprise

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
    "user_keys",
]

GROUPS = ("all", "surface", "item", "user", "item_surface", "user_surface")
"""What the past is counted over."""
_OWN = ("user", "user_surface")
"""Groups whose counts a request brings with its history."""
_CHUNK = 1 << 17
"""Events whose surprise is computed at once."""

Ints = NDArray[np.int64]
Counts = NDArray[np.int32]


class PastSource(Protocol):
    """Where counts come from."""

    num_actions: int
    num_surfaces: int

    def counts(self, group: str, key_B: Ints, time_B: Ints) -> Counts:
        """[B, X] events of each key of a group; a source of everything known ignores the time."""
        ...

    def surprises(self, item_B: Ints, time_B: Ints) -> Ints:
        """[B, X] sums of :func:`recsys.past_lift.surprise` over the events of each item."""
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
        self._surprises: SumsBefore | None = None

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

    def surprises(self, item_B: Ints, time_B: Ints) -> Ints:
        """[B, X] sums over the events of each item strictly before each time."""
        if self._surprises is None:
            log = self._log
            keep_N = log.item >= 0 if self._shared_N is None else self._shared_N & (log.item >= 0)
            self._surprises = SumsBefore(
                log.item[keep_N], log.timestamp[keep_N], self.event_surprise()[keep_N], self._distinct
            )
        return self._surprises.before(item_B, time_B)

    def event_surprise(self) -> Ints:
        """[N, X] surprise of every event, expected from what was before it."""
        log, owner_N = self._log, event_owners(self._log)
        out_NX = np.zeros((len(log), 2 * self.num_actions), dtype=np.int64)
        for low in range(0, len(log), _CHUNK):
            b = slice(low, low + _CHUNK)
            surface_N, time_N = log.surface[b], log.timestamp[b]
            place_N = group_keys("surface", log.item[b], surface_N, self.num_surfaces)
            out_NX[b] = surprise(
                self.counts("all", np.zeros_like(time_N), time_N),
                self.counts("surface", place_N, time_N),
                self.counts("user", owner_N[b], time_N),
                place_N < 0,
                log.yes[b],
                log.known[b],
            )
        return out_NX

    def _counted(self, group: str) -> EventCounts:
        log = self._log
        if group in _OWN:
            key_N = user_keys(group, event_owners(log), log.surface, self.num_surfaces)
            keep_N = key_N >= 0
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

    def __init__(
        self,
        num_actions: int,
        num_surfaces: int,
        groups: dict[str, tuple[Ints, Counts]],
        surprises: tuple[Ints, Ints],
    ) -> None:
        """Take over tables: per group sorted keys [K] and their counts [K, X], and so for surprises of items."""
        self.num_actions, self.num_surfaces = num_actions, num_surfaces
        self._groups, self._item_surprises = groups, surprises

    @classmethod
    def build(cls, log: EventLog, num_actions: int, num_surfaces: int) -> PastTable:
        """Count all events of a log."""
        groups = {}
        for group in GROUPS:
            if group in _OWN:
                continue
            key_N = group_keys(group, log.item, log.surface, num_surfaces)
            keep_N = key_N >= 0
            keys_K, place_N = np.unique(key_N[keep_N], return_inverse=True)
            bits_NX = action_counts(log.yes[keep_N], log.known[keep_N], num_actions)
            columns = [np.bincount(place_N, weights=bits_N, minlength=len(keys_K)) for bits_N in bits_NX.T]
            groups[group] = (keys_K, np.stack(columns, 1).astype(np.int32))
        keep_N = log.item >= 0
        items_K, place_N = np.unique(log.item[keep_N], return_inverse=True)
        sums_KX = np.zeros((len(items_K), 2 * num_actions), dtype=np.int64)
        np.add.at(sums_KX, place_N, PastLog(log, num_actions, num_surfaces).event_surprise()[keep_N])
        return cls(num_actions, num_surfaces, groups, (items_K, sums_KX))

    def counts(self, group: str, key_B: Ints, time_B: Ints) -> Counts:
        """[B, X] all events of each key, whatever the time."""
        return _looked_up(*self._groups[group], key_B)

    def surprises(self, item_B: Ints, time_B: Ints) -> Ints:
        """[B, X] sums over all events of each item, whatever the time."""
        return _looked_up(*self._item_surprises, item_B)

    def save(self, path: Path) -> None:
        """Write one file of plain arrays."""
        arrays = {"shape": np.array([self.num_actions, self.num_surfaces])}
        for group, (keys_K, counts_KX) in self._groups.items():
            arrays |= {f"{group}.keys": keys_K, f"{group}.counts": np.ascontiguousarray(counts_KX)}
        arrays |= {"surprise.keys": self._item_surprises[0], "surprise.sums": self._item_surprises[1]}
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> PastTable:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the arrays are not tables of counts.
        """
        arrays = load_file(path)
        num_actions, num_surfaces = (int(size) for size in arrays["shape"])
        for name in (*(f"{g}.counts" for g in GROUPS if g not in _OWN), "surprise.sums"):
            keys = arrays[f"{name.partition('.')[0]}.keys"]
            check_counts(f"{path.name}: {name}", keys, arrays[name], 2 * num_actions)
            first_KA, second_KA = arrays[name][:, :num_actions], arrays[name][:, num_actions:]
            if (second_KA < 0).any() or (name != "surprise.sums" and ((first_KA < 0) | (first_KA > second_KA)).any()):
                raise ValueError(f"{path.name}: {name}: an action can be counted from 0 times to as often as recorded")
        groups = {g: (arrays[f"{g}.keys"], arrays[f"{g}.counts"]) for g in GROUPS if g not in _OWN}
        return cls(num_actions, num_surfaces, groups, (arrays["surprise.keys"], arrays["surprise.sums"]))


def history_counts(histories: Sequence[History], num_actions: int, num_surfaces: int) -> Ints:
    """[B, Y] a user's own counts over a whole history."""
    size_B = [len(history) for history in histories]
    yes_N, known_N, surface_N = (
        np.concatenate([getattr(h, name) for h in histories]) for name in ("yes", "known", "surface")
    )
    bits_NX = action_counts(yes_N, known_N, num_actions).astype(np.int64)
    place_N = np.repeat(np.arange(len(histories)) * num_surfaces, size_B)
    out_YX = np.zeros((len(histories) * num_surfaces, 2 * num_actions), dtype=np.int64)
    np.add.at(out_YX, place_N, bits_NX)
    placed_N = surface_N > 0
    np.add.at(out_YX, (place_N + surface_N)[placed_N], bits_NX[placed_N])
    return out_YX.reshape(len(histories), num_surfaces * 2 * num_actions)


def user_keys(group: str, user_N: Ints, surface_N: Ints, num_surfaces: int) -> Ints:
    """Keys of the groups of a user's own events; -1 where the group does not hold them."""
    return user_N if group == "user" else np.where(surface_N > 0, user_N * num_surfaces + surface_N, -1)


def group_keys(group: str, item_N: Ints, surface_N: Ints, num_surfaces: int) -> Ints:
    """Keys of events or rows; -1 where the group does not hold them."""
    if group == "all":
        return np.zeros_like(item_N)
    if group == "item":
        return item_N
    if group == "surface":
        return np.where(surface_N > 0, surface_N, -1)
    return np.where((surface_N > 0) & (item_N >= 0), item_N * num_surfaces + surface_N, -1)


def _looked_up(keys_K: Ints, values_KX: NDArray[Any], key_B: Ints) -> NDArray[Any]:
    """[B, X] rows of sorted keys; zeros for keys that are not there."""
    if not len(keys_K):
        return np.zeros((len(key_B), values_KX.shape[1]), dtype=values_KX.dtype)
    place_B = np.minimum(np.searchsorted(keys_K, key_B), len(keys_K) - 1)
    found: NDArray[Any] = values_KX[place_B] * (keys_K[place_B] == key_B)[:, None]
    return found


def event_owners(log: EventLog) -> Ints:
    """[N] user of every event."""
    return np.repeat(np.arange(len(log.offsets) - 1, dtype=np.int64), np.diff(log.offsets))


def training_mask(dataset: Dataset) -> NDArray[np.bool_]:
    """[N] whether an event trains."""
    offsets = dataset.events.offsets
    place_N = np.arange(len(dataset.events)) - np.repeat(offsets[:-1], np.diff(offsets))
    trains: NDArray[np.bool_] = place_N < np.repeat(dataset.train_end, np.diff(offsets))
    return trains
