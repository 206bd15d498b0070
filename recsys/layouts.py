"""How events become rows of the encoder: one strategy object per layout.

``mam`` (masked action modelling; UniPinRec, arXiv 2606.00422): one row per event, its action hidden at random; the
action head reads hidden rows, the item head the others. ``lagged`` (arXiv 2510.16804): one row holds an item and the
*previous* event's action, so nothing needs hiding, but the item head does not know the latest action.
``interleaved``: an item row, then a row with its action; twice the rows.

Suffixes: T = packed events, R = packed rows, N = candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.packing import EventBatch

__all__ = ["ActionInput", "Layout", "RowInputs", "make_layout"]


@dataclass(frozen=True, slots=True)
class ActionInput:
    """What a row may read of actions: bits that happened, bits that are known, and whether all of it is hidden."""

    yes: Tensor
    known: Tensor
    hidden: Tensor

    def at(self, rows: Tensor) -> ActionInput:
        return ActionInput(self.yes[rows], self.known[rows], self.hidden[rows])


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Rows of a packed batch."""

    event_R: Tensor | None
    """Event of each row; None = row t is event t."""
    item_R: Tensor
    """Item of the row, -1 where it shows none (unknown item or action row)."""
    actions: ActionInput

    def of_events(self, values_T: Tensor) -> Tensor:
        """Per-event values, per row."""
        return values_T if self.event_R is None else values_T[self.event_R]


class Layout(ABC):
    """Rows, heads' reading places and what a candidate row may know of actions."""

    rows_per_event: int = 1
    hides_actions: bool = False
    """Whether history actions are hidden at random in training."""

    @abstractmethod
    def rows(self, batch: EventBatch, hidden_T: Tensor, previous: ActionInput | None) -> RowInputs:
        """Rows of a batch.

        Args:
            hidden_T: [T] bool, events whose action is hidden (only ``mam`` looks at it).
            previous: [S] the action before each sequence's first event when a cached state is continued.
        """

    def item_reads(self, z_RD: Tensor) -> Tensor:
        """[T, D] outputs that the item head reads, one per event."""
        return z_RD

    def action_reads(self, z_RD: Tensor) -> Tensor:
        """[T, D] outputs that the action head reads, one per event."""
        return z_RD

    def item_events(self, hidden_T: Tensor) -> Tensor:
        """[T] bool: events at which the next positive is predicted."""
        return torch.ones_like(hidden_T)

    def action_events(self, hidden_T: Tensor) -> Tensor:
        """[T] bool: events whose own action is predicted."""
        return torch.ones_like(hidden_T)

    def candidate_actions(self, last: ActionInput) -> ActionInput:
        """What a candidate row reads of actions, from the last event it sees."""
        return _hidden_like(last.hidden)


class MaskedActions(Layout):
    """One row per event; the action of a hidden row is predicted from its item and the past."""

    hides_actions = True

    def rows(self, batch: EventBatch, hidden_T: Tensor, previous: ActionInput | None) -> RowInputs:
        return RowInputs(None, batch.item_T, ActionInput(batch.yes_T, batch.known_T, hidden_T))

    def item_events(self, hidden_T: Tensor) -> Tensor:
        return ~hidden_T

    def action_events(self, hidden_T: Tensor) -> Tensor:
        return hidden_T


class LaggedActions(Layout):
    """One row per event; it reads the action of the event before it."""

    def rows(self, batch: EventBatch, hidden_T: Tensor, previous: ActionInput | None) -> RowInputs:
        first_T = batch.position_T == 0
        starts = batch.offsets_S1[:-1][batch.lengths_S > 0]
        yes, known, hidden = batch.yes_T.roll(1), batch.known_T.roll(1), first_T
        if previous is not None:
            has_rows = batch.lengths_S > 0
            hidden = torch.zeros_like(first_T).index_put((starts,), previous.hidden[has_rows])
            yes = yes.index_put((starts,), previous.yes[has_rows])
            known = known.index_put((starts,), previous.known[has_rows])
        return RowInputs(None, batch.item_T, ActionInput(yes, known, hidden))

    def candidate_actions(self, last: ActionInput) -> ActionInput:
        return last


class Interleaved(Layout):
    """An item row with its action hidden, then a row without an item that shows the action."""

    rows_per_event = 2

    def rows(self, batch: EventBatch, hidden_T: Tensor, previous: ActionInput | None) -> RowInputs:
        event_R = torch.arange(len(batch.item_T), device=batch.item_T.device).repeat_interleave(2)
        is_action_R = torch.arange(len(event_R), device=event_R.device) % 2 == 1
        item_R = torch.where(is_action_R, -1, batch.item_T[event_R])
        return RowInputs(event_R, item_R, ActionInput(batch.yes_T[event_R], batch.known_T[event_R], ~is_action_R))

    def item_reads(self, z_RD: Tensor) -> Tensor:
        return z_RD[1::2]

    def action_reads(self, z_RD: Tensor) -> Tensor:
        return z_RD[0::2]


def _hidden_like(hidden: Tensor) -> ActionInput:
    nothing = torch.zeros(hidden.shape, dtype=torch.int64, device=hidden.device)
    return ActionInput(nothing, nothing, torch.ones_like(hidden))


def make_layout(name: str) -> Layout:
    """The layout that the configuration names."""
    layouts: dict[str, type[Layout]] = {"mam": MaskedActions, "lagged": LaggedActions, "interleaved": Interleaved}
    return layouts[name]()
