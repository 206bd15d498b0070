"""User states that outlive a request: a returning user's events are encoded once.

A state is used only if the hash of its events is that of the first n events of the history at hand, so that a changed
or shortened history is encoded anew, and no key, however chosen, shows one user the state of another.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import InputError
from recsys.event_hash import history_hashes
from recsys.events import History
from recsys.free_memory import free_bytes
from recsys.model import UnifiedModel
from recsys.state_layout import PAGE_ROWS, StateLayout, Storage
from recsys.state_pages import StatePages
from recsys.state_tiers import KeptState, NewState, StateTiers
from recsys.user_state import UserStates, merge_states

__all__ = ["StoreCounts", "UserStateStore"]

Ints = NDArray[np.int64]

FREE_SHARE = 0.25
"""Of the memory that is free when the store is made, what it takes unless told."""
_FEW = 16
"""New events that are always appended; more are where they are no more than the kept ones."""
_SCORES = 1 << 23
"""Attention scores of one append: 32 MiB a tensor."""


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What answering some requests took."""

    hits: int = 0
    """Requests whose state was kept as it is."""
    appended: int = 0
    """Requests whose kept state was continued by the new events."""
    encoded: int = 0
    """Requests whose history was encoded from its first visible event."""
    tokens_encoded: int = 0
    """Rows that the encoder ran over."""
    tokens_reused: int = 0
    """Rows that it did not need to."""
    evicted: int = 0
    """States that had to leave the first tier."""

    def __add__(self, other: StoreCounts) -> StoreCounts:
        return StoreCounts(
            self.hits + other.hits,
            self.appended + other.appended,
            self.encoded + other.encoded,
            self.tokens_encoded + other.tokens_encoded,
            self.tokens_reused + other.tokens_reused,
            self.evicted + other.evicted,
        )


class _Totals:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self._lock, self.counts = threading.Lock(), StoreCounts()

    def add(self, counts: StoreCounts) -> None:
        with self._lock:
            self.counts = self.counts + counts


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the state of one request comes about."""

    place: int
    history: History
    new: NewState | None
    """What to keep of it; None for nothing, or nothing new."""
    kept: KeptState | None = None
    num_new: int = 0
    """Events to append to ``kept``."""


class UserStateStore:
    """States of the users of one model, kept within a budget of bytes; safe to use from many threads.

    Example:
        >>> store = UserStateStore(model, model_hash="…")                             # doctest: +SKIP
        >>> states, counts = store.states(["u7", None], [history, somebody_new])      # doctest: +SKIP

    Args:
        model: what encodes; in evaluation mode, never changed.
        model_hash: stands for the weights and the configuration, such as :attr:`recsys.bundle.Bundle.model_hash`.
        item_version_I: a number of each item that changes when its vector does and the rest of the model stays, so
            that only histories which hold the item are encoded anew; None = all 0.
        max_bytes: memory on the model's device; 0 = keep nothing, None = a quarter of what is free.
        host_bytes: a second tier in host memory, which takes what has to leave the first; 0 = none, None = a quarter
            of what is free where the model is on a GPU, else none.
        page_rows: cached rows of a page.
        storage: ``int8`` takes about .28 of the memory; kept states are then not exact, see
            :mod:`recsys.state_int8`.
    Raises:
        InputError: a negative budget, or more than there is.
    """

    def __init__(
        self,
        model: UnifiedModel,
        *,
        model_hash: str,
        item_version_I: Ints | None = None,
        max_bytes: int | None = None,
        host_bytes: int | None = None,
        page_rows: int = PAGE_ROWS,
        storage: Storage = "float32",
    ) -> None:
        self.model, self.model_hash, self.item_version_I = model, model_hash, item_version_I
        self.layout = StateLayout.of(model.config, page_rows, storage)
        host = torch.device("cpu")
        if host_bytes is None:
            host_bytes = int(FREE_SHARE * free_bytes(host)) if model.device.type != "cpu" else 0
        if max_bytes is None:
            max_bytes = int(FREE_SHARE * free_bytes(model.device))
        for name, given in (("max_bytes", max_bytes), ("host_bytes", host_bytes)):
            if given < 0:
                raise InputError(f"{name} must not be negative, got {given}; 0 keeps no states there")
        self._budgets = (max_bytes, host_bytes)
        tiers = [StatePages(self.layout, max_bytes, model.device)]
        if host_bytes:
            tiers.append(StatePages(self.layout, host_bytes, host))
        self._tiers = StateTiers(tiers)
        self._keeps = tiers[0].num_pages > 0
        self._totals = _Totals()

    def for_model(self, model: UnifiedModel, model_hash: str, item_version_I: Ints | None = None) -> UserStateStore:
        """A store of another model with the same budgets and totals, in the same memory where the layouts are equal.

        Requests that still run on the old model may go on using this one.
        """
        layout = StateLayout.of(model.config, self.layout.page_rows, self.layout.storage)
        if layout == self.layout and model.device == self.model.device:
            other = copy(self)
            other.model, other.model_hash, other.item_version_I = model, model_hash, item_version_I
            return other
        max_bytes, host_bytes = self._budgets
        other = UserStateStore(
            model, model_hash=model_hash, item_version_I=item_version_I, max_bytes=max_bytes, host_bytes=host_bytes,
            page_rows=layout.page_rows, storage=layout.storage,
        )  # fmt: skip
        other._totals = self._totals
        return other

    # -- what there is --------------------------------------------------------------------------------------------

    @property
    def counts(self) -> StoreCounts:
        """Totals of all calls so far."""
        return self._totals.counts

    @property
    def num_states(self) -> int:
        return len(self._tiers.keys())

    @property
    def used_bytes(self) -> int:
        """Bytes in use in all tiers: the sum of :meth:`StateLayout.state_bytes` over the kept states."""
        return sum(self._tiers.used_bytes())

    def forget(self, keys: Iterable[Hashable]) -> None:
        """Drop what is kept of some keys, of this model and of others in the same memory.

        A request that is under way may keep its user's state again.
        """
        gone = set(keys)
        self._tiers.forget([full for full in self._tiers.keys() if full[1] in gone])  # type: ignore[index]

    def clear(self) -> None:
        """Drop all states of this model."""
        self._tiers.forget([full for full in self._tiers.keys() if full[0] == self.model_hash])  # type: ignore[index]

    # -- requests -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def states(
        self,
        keys: Sequence[Hashable | None],
        histories: Sequence[History],
        *,
        keep_cache: bool = True,
        user_BK: Tensor | NDArray[np.float32] | None = None,
        item_ID: Tensor | None = None,
    ) -> tuple[UserStates, StoreCounts]:
        """What ``model.encode(histories, …)`` returns, to rounding, and what it took.

        Args:
            keys: whose each history is; None = not kept.
            histories, keep_cache, user_BK, item_ID: see :meth:`recsys.model.UnifiedModel.encode`.
        """
        seen = self.model.seen(histories)
        found = self._tiers.pin([self._full_key(key, own) for key, own in zip(keys, seen, strict=True)])
        pinned = list(found)
        try:
            plans = [self._plan(*request) for request in zip(range(len(seen)), keys, seen, found, strict=True)]
            plans, evicted = self._raise(plans, pinned)
            parts, places, left = self._computed(plans, keep_cache, item_ID)
        finally:
            self._tiers.unpin(pinned)
        states = merge_states(parts, places)
        counts = self._counted(plans, evicted + left)
        self._totals.add(counts)
        if self.model.users is not None:
            states = replace(states, user_BD=self.model.user_vectors(len(seen), user_BK))
        return states, counts

    def _full_key(self, key: Hashable | None, history: History) -> Hashable | None:
        """None where nothing is kept: a key of None, and the state of an empty history, which is a constant."""
        return (self.model_hash, key) if self._keeps and key is not None and len(history) else None

    def _plan(self, place: int, key: Hashable | None, history: History, kept: KeptState | None) -> _Plan:
        full_key, num_events = self._full_key(key, history), len(history)
        if full_key is None:
            return _Plan(place, history, None)
        first = self.model.config.first_visible(num_events)
        num_kept = 0 if kept is None else min(kept.num_events, num_events)
        hash_kept, hash_all = history_hashes(history, num_kept, self.item_version_I)
        num_rows = (num_events - first) * self.layout.rows_per_event
        if kept is not None and kept.num_events <= num_events and kept.event_hash == hash_kept:
            num_new = num_events - num_kept
            if not num_new:
                return _Plan(place, history, None, kept)
            if kept.first == first and self._may_append(history, kept, num_new):
                new = NewState(full_key, hash_all, num_events, first, num_rows, place, before=kept)
                return _Plan(place, history, new, kept, num_new)
        return _Plan(place, history, NewState(full_key, hash_all, num_events, first, num_rows, place))

    def _may_append(self, history: History, kept: KeptState, num_new: int) -> bool:
        if num_new > max(_FEW, kept.num_events - kept.first):
            return False  # little would be saved
        # A state says "unknown" of the time of its last event by -1, so that times before 1970 cannot be continued.
        last = kept.num_events - 1
        return not (history.time_known[last] and history.timestamp[last] < 0)

    def _raise(self, plans: Sequence[_Plan], pinned: list[KeptState | None]) -> tuple[list[_Plan], int]:
        """Bring what is needed of the second tier to the first; without room it is read, or encoded, from where it is.

        Args:
            pinned: what is raised is added.
        """
        done, evicted = [], 0
        for plan in plans:
            if plan.kept is not None and plan.kept.tier:
                raised, left = self._tiers.raised(plan.kept)
                evicted += left
                if raised is not None:
                    pinned.append(raised)
                    new = None if plan.new is None else replace(plan.new, before=raised)
                    plan = replace(plan, kept=raised, new=new)
                elif plan.new is not None:
                    plan = replace(plan, new=None)
            done.append(plan)
        return done, evicted

    def _computed(
        self, plans: Sequence[_Plan], keep_cache: bool, item_ID: Tensor | None
    ) -> tuple[list[UserStates], list[list[int]], int]:
        """States by how they come about, their places among the requests, and how many others had to leave."""
        parts: list[UserStates] = []
        places: list[list[int]] = []
        evicted = 0
        for group in self._groups(plans):
            kept = [plan.kept for plan in group if plan.kept is not None]
            new = [replace(plan.new, row=row) for row, plan in enumerate(group) if plan.new is not None]
            if not kept:
                with_cache = keep_cache or bool(new)
                shown = [plan.history for plan in group]
                states = self.model.encode(shown, keep_cache=with_cache, item_ID=item_ID)
                if self.model.users is not None:  # the request says anew what is known of its user
                    states = replace(states, user_BD=states.user_BD[:, :0])
            else:
                grows = any(plan.num_new for plan in group)
                with_cache = keep_cache or grows
                states = self._tiers.read(kept, keep_cache=with_cache)
                if grows:
                    new_events = [plan.history.at(slice(len(plan.history) - plan.num_new, None)) for plan in group]
                    states = self.model.append(states, new_events, item_ID=item_ID)
            if new:
                evicted += self._tiers.keep(states, new)
            parts.append(states.without_cache() if with_cache and not keep_cache else states)
            places.append([plan.place for plan in group])
        return parts, places, evicted

    def _groups(self, plans: Sequence[_Plan]) -> list[list[_Plan]]:
        """Plans that are computed together: of one kind and tier, and about as many new events."""
        groups: dict[tuple[int, int], list[_Plan]] = {}
        for plan in plans:
            tier = -1 if plan.kept is None else plan.kept.tier
            size = max(1, (plan.num_new - 1).bit_length() // 2) if plan.num_new else 0
            groups.setdefault((tier, size), []).append(plan)
        return [part for (_, size), group in groups.items() for part in (self._bounded(group) if size else [group])]

    def _bounded(self, group: list[_Plan]) -> list[list[_Plan]]:
        """Parts of a group of appends whose attention scores fit in a few megabytes."""
        heads, scale = self.layout.num_heads, self.layout.rows_per_event
        rows = max(len(plan.history) - self.model.config.first_visible(len(plan.history)) for plan in group) * scale
        together = max(1, _SCORES // (heads * rows * max(plan.num_new for plan in group) * scale))
        return [group[low : low + together] for low in range(0, len(group), together)]

    def _counted(self, plans: Sequence[_Plan], evicted: int) -> StoreCounts:
        scale, first = self.layout.rows_per_event, self.model.config.first_visible
        rows = [(len(plan.history) - first(len(plan.history))) * scale for plan in plans]
        ours = [own if plan.kept is None else plan.num_new * scale for own, plan in zip(rows, plans, strict=True)]
        return StoreCounts(
            hits=sum(plan.kept is not None and not plan.num_new for plan in plans),
            appended=sum(plan.kept is not None and plan.num_new > 0 for plan in plans),
            encoded=sum(plan.kept is None for plan in plans),
            tokens_encoded=sum(ours),
            tokens_reused=sum(rows) - sum(ours),
            evicted=evicted,
        )
