"""What the encoder made of histories: everything later stages need, and nothing that depends on a request.

Suffixes: B = users, L = cached rows (padded on the right), H = heads, D = width, M = recent positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from recsys.encoder import KeysValues
from recsys.layouts import ActionInput

__all__ = ["UserStates", "merge_states"]


@dataclass(frozen=True, slots=True)
class UserStates:
    """States of B users."""

    cache: KeysValues
    """Per layer keys and values [B, L, H, head_dim]; empty where only retrieval was asked for."""
    num_rows_B: Tensor
    """Cached rows that are real."""
    num_events_B: Tensor
    """Events of the whole history, those before the window included."""
    first_B: Tensor
    """Place in the history of the first event the window shows."""
    time_BL: Tensor
    time_known_BL: Tensor
    last_BD: Tensor
    """Last output row; the start vector for an empty history."""
    last_time_B: Tensor
    """Time of the last event; -1 where there is none or it is not known."""
    last_actions: ActionInput
    positive_age_B: Tensor
    """Events from the last visible positive one to the place after the last; 0 where none is visible."""
    recent_BM: Tensor
    """Last positive items of the whole history, newest first, -1 padded; memory terms read the first few."""
    past_BX: Tensor
    """Events of the whole history in which each action happened, then was recorded: of all, then of every surface from
    1 on; [B, 0] without past rates."""
    user_BD: Tensor
    """What the model makes of the users' features, zero where they are unknown; [B, 0] where it reads none."""

    @property
    def num_users(self) -> int:
        return len(self.num_rows_B)

    def select(self, rows: Tensor) -> UserStates:
        """States of some users, in the order of ``rows`` (repeats allowed)."""
        picked = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                picked[field.name] = value[rows]
        return UserStates(
            cache=[(k[rows], v[rows]) for k, v in self.cache], last_actions=self.last_actions.at(rows), **picked
        )

    def without_cache(self) -> UserStates:
        """The same states without keys and values, for retrieval alone."""
        return replace(self, cache=[], time_BL=self.time_BL[:, :0], time_known_BL=self.time_known_BL[:, :0])


def merge_states(parts: Sequence[UserStates], places: Sequence[Sequence[int]]) -> UserStates:
    """States of several batches as one; keys and values are padded to the longest.

    Args:
        parts: at least one; all with keys and values, or all without.
        places: where each state of each part stands in the result, every place once.
    """
    if len(parts) == 1 and list(places[0]) == list(range(parts[0].num_users)):
        return parts[0]
    device = parts[0].num_rows_B.device
    place = [torch.tensor(rows, dtype=torch.int64, device=device) for rows in places]
    total, width = sum(map(len, places)), max(part.time_BL.shape[1] for part in parts)

    def merged(values: Sequence[Tensor], *, padded: bool = False) -> Tensor:
        tail = values[0].shape[1 + padded :]
        out = values[0].new_empty(total, *([width] if padded else []), *tail)
        for rows, value in zip(place, values, strict=True):
            if not padded:
                out.index_copy_(0, rows, value)
                continue
            columns = value.shape[1]
            out[:, :columns].index_copy_(0, rows, value)
            if columns < width:
                out[:, columns:].index_fill_(0, rows, 0)
        return out

    joined = {
        field.name: merged(
            [getattr(part, field.name) for part in parts], padded=field.name in ("time_BL", "time_known_BL")
        )
        for field in fields(UserStates)
        if field.name not in ("cache", "last_actions")
    }
    actions = {
        field.name: merged([getattr(part.last_actions, field.name) for part in parts]) for field in fields(ActionInput)
    }
    layers = [
        (merged([k for k, _ in layer], padded=True), merged([v for _, v in layer], padded=True))
        for layer in zip(*(part.cache for part in parts), strict=True)
    ]
    return UserStates(cache=layers, last_actions=ActionInput(**actions), **joined)


def pad_packed(rows_R: Tensor, start_B: Tensor, length_B: Tensor, columns: int) -> Tensor:
    """[R, …] packed rows to [B, columns, …] with zeros on the right."""
    at_BL = torch.arange(columns, device=rows_R.device)
    real_BL = at_BL < length_B[:, None]
    index = torch.where(real_BL, start_B[:, None] + at_BL, 0)
    if not len(rows_R):
        return rows_R.new_zeros(*index.shape, *rows_R.shape[1:])
    padded = rows_R[index]
    return padded.masked_fill(~real_BL.view(*real_BL.shape, *([1] * (padded.dim() - 2))), 0)
