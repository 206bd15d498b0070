"""Packed batches of events and of candidates.

Suffixes: T = packed events, S = sequences, N = packed candidate rows, Q = sequences that have candidates.
Sequences are sorted by length, so that equal lengths are neighbours and attention runs on views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.attention import Group, equal_length_groups
from recsys.events import EventLog, History
from recsys.time_features import UNKNOWN_GAP

__all__ = ["CandidateRows", "EventBatch", "pack_histories", "pack_windows", "ranges"]

Ints = NDArray[np.int64]


_Batch = TypeVar("_Batch", "EventBatch", "CandidateRows")


def ranges(start: Ints, length: Ints) -> Ints:
    """Concatenation of ``arange(start[i], start[i] + length[i])``.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    total = int(length.sum())
    before = np.cumsum(length) - length
    return np.arange(total, dtype=np.int64) + np.repeat(start - before, length)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """T events of S sequences, rows of a sequence adjacent, sequences sorted by length."""

    item_T: Tensor
    yes_T: Tensor
    known_T: Tensor
    surface_T: Tensor
    time_T: Tensor
    time_known_T: Tensor
    gap_T: Tensor
    """Seconds since the previous event of the sequence; -1 at its start and where a time is unknown."""
    position_T: Tensor
    """Place in the window, from 0."""
    offsets_S1: Tensor
    groups: tuple[Group, ...]

    @property
    def num_sequences(self) -> int:
        return len(self.offsets_S1) - 1

    @property
    def lengths_S(self) -> Tensor:
        return self.offsets_S1.diff()

    def to(self, device: torch.device | str) -> EventBatch:
        return _moved(self, device)


@dataclass(frozen=True, slots=True)
class CandidateRows:
    """N candidates of Q sequences; candidate n stands at ``place_N[n]`` of the padded [Q, columns] table."""

    sequence_Q: Tensor
    place_N: Tensor | None
    """None: all Q · columns places are rows, in order."""
    columns: int
    item_N: Tensor
    time_N: Tensor
    surface_N: Tensor
    visible_N: Tensor
    """Events of the sequence that the candidate sees."""
    shown_N: Tensor | None = None
    """Place in the slate as shown, from 0; training only."""
    yes_N: Tensor | None = None
    known_N: Tensor | None = None
    slate_N: Tensor | None = None
    value_N: Tensor | None = None
    feature_NF: Tensor | None = None
    """What the ranking head reads beside the encoder, as of the slate's time; see :mod:`recsys.candidate_features`."""

    def to(self, device: torch.device | str) -> CandidateRows:
        return _moved(self, device)

    def pad(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """[N, …] to [Q, columns, …]."""
        shape = (self.sequence_Q.shape[0], self.columns, *rows.shape[1:])
        if self.place_N is None:
            return rows.view(shape)
        flat = rows.new_full((shape[0] * shape[1], *rows.shape[1:]), fill)
        return flat.index_copy(0, self.place_N, rows).view(shape)

    def unpad(self, table: Tensor) -> Tensor:
        """[Q, columns, …] to [N, …]."""
        flat = table.flatten(0, 1)
        return flat if self.place_N is None else flat.index_select(0, self.place_N)


def _moved(batch: _Batch, device: torch.device | str) -> _Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
    return replace(batch, **moved)


def pack_windows(log: EventLog, user: Ints, start: Ints, end: Ints) -> EventBatch:
    """Events ``start`` to ``end`` of users, which the caller has sorted by ``end - start``."""
    rows = ranges(log.offsets[user] + start, end - start)
    columns: Any = (log.item, log.yes, log.known, log.surface, log.timestamp, log.time_known)
    return _pack(*(column[rows] for column in columns), lengths=end - start)


def pack_histories(histories: Sequence[History], previous_time: Ints | None = None) -> EventBatch:
    """Histories that the caller has sorted by length.

    Args:
        previous_time: time of the event before each history, or -1; None = the histories start their windows.
    """
    names = ("item", "yes", "known", "surface", "timestamp", "time_known")
    columns: list[Any] = [np.concatenate([getattr(h, name) for h in histories]) for name in names]
    lengths = np.array([len(h) for h in histories], dtype=np.int64)
    return _pack(*columns, lengths=lengths, previous_time=previous_time)


def _pack(
    item: Ints,
    yes: Ints,
    known: Ints,
    surface: Ints,
    time: Ints,
    time_known: NDArray[np.bool_],
    *,
    lengths: Ints,
    previous_time: Ints | None = None,
) -> EventBatch:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gap = np.full(len(item), UNKNOWN_GAP, dtype=np.int64)
    both = time_known[1:] & time_known[:-1]
    gap[1:] = np.where(both, np.maximum(time[1:] - time[:-1], 0), UNKNOWN_GAP)
    starts = offsets[:-1][lengths > 0]
    gap[starts] = UNKNOWN_GAP
    if previous_time is not None:
        before = previous_time[lengths > 0]
        gap[starts] = np.where((before >= 0) & time_known[starts], np.maximum(time[starts] - before, 0), UNKNOWN_GAP)
    return EventBatch(
        item_T=_tensor(item),
        yes_T=_tensor(yes),
        known_T=_tensor(known),
        surface_T=_tensor(surface),
        time_T=_tensor(time),
        time_known_T=torch.from_numpy(np.ascontiguousarray(time_known)),
        gap_T=_tensor(gap),
        position_T=_tensor(ranges(np.zeros_like(lengths), lengths)),
        offsets_S1=_tensor(offsets),
        groups=equal_length_groups(lengths.tolist()),
    )


def _tensor(values: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
