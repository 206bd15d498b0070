"""Training examples: windows of histories and the slates that follow them, cut into packed batches.

Suffixes: U = users, W = windows, T = packed events, S = sequences, N = packed candidate rows.
Slates are joined to histories here, by user, at load time; no joined table exists.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.events import EventLog, SlateLog
from recsys.packing import CandidateRows, EventBatch, pack_windows, ranges

__all__ = ["TrainingBatch", "TrainingExamples", "chunk_sorted_batches", "events_before"]

Ints = NDArray[np.int64]
_TRAIN = 0


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A packed batch with its targets."""

    events: EventBatch
    target_T: Tensor
    """Item of the next positive event, -1 where training data holds none."""
    request_time_T: Tensor
    """Time, surface and whether the time is known of that next positive event: the request it answers."""
    request_surface_T: Tensor
    request_known_T: Tensor
    value_T: Tensor
    start_S: Tensor
    """[F] sequences that show their user's first event, picked for the start vector."""
    start_target_F: Tensor
    start_time_F: Tensor
    start_surface_F: Tensor
    start_known_F: Tensor
    candidates: CandidateRows | None
    feature_TF: Tensor | None = None
    """Features of every event as a candidate, as of its own time."""
    user_SK: Tensor | None = None
    """Features of the sequences' users."""

    def to(self, device: torch.device | str) -> TrainingBatch:
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: part if part is None else part.to(device) for name, part in parts.items()}
        return TrainingBatch(**moved)


def events_before(log: EventLog, user: Ints, time: Ints) -> Ints:
    """How many events each user has strictly before a time; vectorised over (user, time) pairs."""
    values = np.unique(log.timestamp)
    width = len(values) + 1
    owner = np.repeat(np.arange(len(log.offsets) - 1), np.diff(log.offsets))
    key = owner * width + np.searchsorted(values, log.timestamp)
    count: Ints = np.searchsorted(key, user * width + np.searchsorted(values, time), side="left") - log.offsets[user]
    return count


class TrainingExamples:
    """Cuts the training part of a log into windows and batches, each a function of (seed, pass, place) alone.

    Args:
        log: all events. train_end: [U] how many events of each user may train.
        positive: [events] bool. slates: their rows train where their split says so.
        window: most events of one window. batch_tokens: events plus candidates of a batch, about.
        start_share: share of a user's first windows that train the start vector.
        feature_NF: features of the events as candidates. feature_RF: of the slate rows.
        user_UK: features of the users.
        crop: share of windows that are cut in two at a random place. The second part starts anew at position 0, so
            that short histories are seen, and no event is lost.
    """

    def __init__(
        self,
        log: EventLog,
        train_end: Ints,
        positive: NDArray[np.bool_],
        slates: SlateLog | None,
        *,
        window: int,
        batch_tokens: int,
        seed: int,
        start_share: float = 0.125,
        crop: float = 0.0,
        feature_NF: NDArray[np.float16] | None = None,
        feature_RF: NDArray[np.float32] | None = None,
        user_UK: NDArray[np.float32] | None = None,
    ) -> None:
        self.user_UK = user_UK
        self.feature_NF, self.feature_RF = feature_NF, feature_RF
        self.crop = crop
        self.log, self.train_end, self.window = log, train_end, window
        self.batch_tokens, self.seed, self.start_share = batch_tokens, seed, start_share
        num_events = len(log)
        owner = np.repeat(np.arange(len(train_end)), np.diff(log.offsets))
        trains = np.arange(num_events) < (log.offsets[:-1] + train_end)[owner]
        self.target = positive & trains
        self.next_positive = _next_positive(self.target, log.offsets)
        self.slates = slates
        if slates is not None:
            train_slates = np.flatnonzero(slates.split == _TRAIN)
            visible = np.minimum(
                events_before(log, slates.user[train_slates], slates.timestamp[train_slates]),
                train_end[slates.user[train_slates]],
            )
            self.slate, self.slate_visible = train_slates, visible
            self._stride = int(np.diff(log.offsets).max(initial=0)) + 2
            self.slate_key = slates.user[train_slates] * self._stride + visible
            self.slate_size = np.diff(slates.offsets)[train_slates]
        self._pass, self._cuts = -1, [np.zeros(0, np.int64)]
        self._windows: tuple[Ints, Ints, Ints] = (np.zeros(0, np.int64),) * 3
        self.steps_per_epoch = len(self._plan(0))
        self._passes = [0, self.steps_per_epoch]

    def batch(self, step: int) -> TrainingBatch:
        """The batch of a global step; passes over the data follow each other without end."""
        while step >= self._passes[-1]:
            self._passes.append(self._passes[-1] + len(self._plan(len(self._passes) - 1)))
        number = int(np.searchsorted(self._passes, step, side="right")) - 1
        cuts = self._plan(number)
        return self._build(cuts[step - self._passes[number]], np.random.default_rng((self.seed, 1, step)))

    def _plan(self, number: int) -> list[Ints]:
        """Windows of one pass and their batches."""
        if number != self._pass:
            rng = np.random.default_rng((self.seed, 0, number))
            self._windows = user, start, end = self._cut_windows(rng)
            tokens = (end - start) + self._candidates_in(user, start, end)
            self._cuts = chunk_sorted_batches(end - start, tokens, self.batch_tokens, rng)
            self._pass = number
        return self._cuts

    def _cut_windows(self, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """Every user's training events in windows; a long history is cut at a random phase."""
        length = self.train_end
        phase = np.where(length > self.window, rng.integers(1, self.window + 1, size=len(length)), length)
        extra = -(-(length - phase) // self.window)
        pieces = np.where(length > 0, 1 + extra, 0)
        user = np.repeat(np.arange(len(length)), pieces)
        number = ranges(np.zeros_like(pieces), pieces)
        start = np.where(number == 0, 0, phase[user] + (number - 1) * self.window)
        end = np.minimum(phase[user] + number * self.window, length[user])
        keep = end > start
        user, start, end = user[keep], start[keep], end[keep]
        if not self.crop:
            return user, start, end
        size = end - start
        cut = (rng.random(len(size)) < self.crop) & (size > 1)
        middle = start + 1 + (rng.random(len(size)) * (size - 1)).astype(np.int64)  # start < middle < end
        return (
            np.concatenate([user, user[cut]]),
            np.concatenate([start, middle[cut]]),
            np.concatenate([np.where(cut, middle, end), end[cut]]),
        )

    def _slate_range(self, user: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints]:
        """Train slates whose visible history ends inside each window (at its start only for a user's first window)."""
        low = np.where(start == 0, 0, start + 1)
        first = np.searchsorted(self.slate_key, user * self._stride + low, side="left")
        last = np.searchsorted(self.slate_key, user * self._stride + end, side="right")
        return first, last - first

    def _candidates_in(self, user: Ints, start: Ints, end: Ints) -> Ints:
        if self.slates is None:
            return np.zeros_like(user)
        first, count = self._slate_range(user, start, end)
        total = np.concatenate([[0], np.cumsum(self.slate_size)])
        rows: Ints = total[first + count] - total[first]
        return rows

    def _build(self, chosen: Ints, rng: np.random.Generator) -> TrainingBatch:
        log = self.log
        user, start, end = (column[chosen] for column in self._windows)
        events = pack_windows(log, user, start, end)
        rows = ranges(log.offsets[user] + start, end - start)
        following = self.next_positive[rows]
        picked = np.flatnonzero((start == 0) & (rng.random(len(user)) < self.start_share))
        first_row = log.offsets[user[picked]]
        first_positive = np.where(self.target[first_row], first_row, self.next_positive[first_row])
        picked, first_positive = picked[first_positive >= 0], first_positive[first_positive >= 0]
        value = log.value[rows]
        return TrainingBatch(
            events=events,
            target_T=_tensor(np.where(following >= 0, log.item[following], -1)),
            request_time_T=_tensor(log.timestamp[following]),
            request_surface_T=_tensor(log.surface[following]),
            request_known_T=torch.from_numpy(log.time_known[following]),
            value_T=torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)),
            start_S=_tensor(picked),
            start_target_F=_tensor(log.item[first_positive]),
            start_time_F=_tensor(log.timestamp[first_positive]),
            start_surface_F=_tensor(log.surface[first_positive]),
            start_known_F=torch.from_numpy(log.time_known[first_positive]),
            candidates=self._candidates(user, start, end),
            user_SK=None if self.user_UK is None else torch.from_numpy(self.user_UK[user]),
            feature_TF=None if self.feature_NF is None else torch.from_numpy(self.feature_NF[rows]),
        )

    def _candidates(self, user: Ints, start: Ints, end: Ints) -> CandidateRows | None:
        if self.slates is None:
            return None
        slates = self.slates
        first, count = self._slate_range(user, start, end)
        if not count.any():
            return None
        sequence = np.flatnonzero(count)
        local = ranges(first, count)  # place among the train slates
        slate = self.slate[local]
        size = self.slate_size[local]
        rows = ranges(slates.offsets[slate], size)
        window_of_slate = np.repeat(np.arange(len(user)), count)
        window_of_row = np.repeat(window_of_slate, size)
        per_window = np.bincount(window_of_row, minlength=len(user))
        within = ranges(np.zeros_like(per_window), per_window)
        compact = np.zeros(len(user), dtype=np.int64)
        compact[sequence] = np.arange(len(sequence))
        columns = int(per_window.max())
        visible = np.repeat(self.slate_visible[local] - start[window_of_slate], size)
        return CandidateRows(
            sequence_Q=_tensor(sequence),
            place_N=_tensor(compact[window_of_row] * columns + within),
            columns=columns,
            item_N=_tensor(slates.item[rows]),
            time_N=_tensor(np.repeat(slates.timestamp[slate], size)),
            surface_N=_tensor(slates.surface[rows]),
            visible_N=_tensor(visible),
            shown_N=_tensor(ranges(np.zeros_like(size), size)),
            yes_N=_tensor(slates.yes[rows]),
            known_N=_tensor(slates.known[rows]),
            slate_N=_tensor(np.repeat(slate, size)),
            value_N=torch.from_numpy(np.ascontiguousarray(slates.value[rows], dtype=np.float32)),
            feature_NF=None if self.feature_RF is None else torch.from_numpy(self.feature_RF[rows]),
        )


def _next_positive(target: NDArray[np.bool_], offsets: Ints) -> Ints:
    """Row of the next target after each row within its user, -1 where there is none."""
    num_rows = len(target)
    place = np.where(target, np.arange(num_rows), num_rows)
    at_or_after = np.minimum.accumulate(place[::-1])[::-1]
    after = np.append(at_or_after[1:], num_rows)
    end = np.repeat(offsets[1:], np.diff(offsets))
    found: Ints = np.where(after < end, after, -1).astype(np.int64)
    return found


def chunk_sorted_batches(
    length: Ints, tokens: Ints, budget: int, rng: np.random.Generator, chunk: int = 32
) -> list[Ints]:
    """Windows in batches of about ``budget`` tokens, each sorted by length; lengths are alike inside a batch."""
    order = rng.permutation(len(length))
    cuts: list[Ints] = []
    edges = _edges(tokens[order], budget * chunk)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        part = order[low:high]
        part = part[np.argsort(length[part], kind="stable")]
        inner = _edges(tokens[part], budget)
        cuts += [part[a:b] for a, b in zip(inner[:-1], inner[1:], strict=True)]
    return [cuts[i] for i in rng.permutation(len(cuts))]


def _edges(tokens: Ints, budget: int) -> list[int]:
    """Cut points so that each part holds about ``budget`` tokens and at least one window."""
    if not len(tokens):
        return [0]
    total = np.cumsum(tokens)
    parts = max(1, round(int(total[-1]) / budget))
    goals = total[-1] * np.arange(1, parts) / parts
    return [0, *sorted(set((np.searchsorted(total, goals) + 1).tolist()) - {0, len(tokens)}), len(tokens)]


def _tensor(values: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
