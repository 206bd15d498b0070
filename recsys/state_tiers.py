"""Which user states are kept where: least recently used ones move from the first tier to the second, then out.

One lock guards the books and is never held while rows are copied or computed. A state that is pinned is neither moved
nor dropped, and its pages are not written.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from recsys.state_pages import StatePages
from recsys.user_state import UserStates

__all__ = ["KeptState", "NewState", "StateTiers"]


@dataclass(slots=True, eq=False)
class KeptState:
    """A state in pages. What it says never changes; a state that grew is another one."""

    key: Hashable
    event_hash: bytes
    """Of the events that the state was made from."""
    num_events: int
    first: int
    """Place of the first visible event."""
    num_rows: int
    tier: int
    pages: list[int]
    pins: int = 0
    listed: bool = True
    """Whether a request may still find it."""


@dataclass(frozen=True, slots=True)
class NewState:
    """A state that was just computed: row ``row`` of some user states."""

    key: Hashable
    event_hash: bytes
    num_events: int
    first: int
    num_rows: int
    row: int
    before: KeptState | None = None
    """The pinned state of the first tier that it continues."""


@dataclass(slots=True)
class _Tier:
    pages: StatePages
    kept: OrderedDict[Hashable, KeptState] = field(default_factory=OrderedDict)
    """Least recently used first."""


class StateTiers:
    """Kept states by key, in one or two tiers of pages of equal layout; safe to use from many threads.

    Args:
        pages: the first tier is on the model's device.
    """

    def __init__(self, pages: Sequence[StatePages]) -> None:
        self._tiers = [_Tier(own) for own in pages]
        self._sinking: dict[Hashable, KeptState] = {}
        """On their way to the second tier, where nobody finds them yet; who is forgotten leaves here too."""
        self._lock = threading.Lock()
        self.layout = pages[0].layout

    # -- what a request does --------------------------------------------------------------------------------------

    def pin(self, keys: Iterable[Hashable | None]) -> list[KeptState | None]:
        """The state of each key, which stays as it is until :meth:`unpin`; None where none is kept."""
        found: list[KeptState | None] = []
        with self._lock:
            for key in keys:
                state = None
                for tier in self._tiers if key is not None else ():
                    state = tier.kept.get(key)
                    if state is not None:
                        tier.kept.move_to_end(key)
                        state.pins += 1
                        break
                found.append(state)
        return found

    def unpin(self, states: Iterable[KeptState | None]) -> None:
        """Give back what :meth:`pin` or :meth:`raised` returned."""
        with self._lock:
            for state in states:
                if state is not None:
                    state.pins -= 1
                    self._let_go(state)

    def read(self, states: Sequence[KeptState], *, keep_cache: bool) -> UserStates:
        """Copies of pinned states, which must all be in one tier, on the device of the first."""
        (tier,) = {state.tier for state in states}
        return self._tiers[tier].pages.read(
            [state.pages for state in states],
            [state.num_rows for state in states],
            keep_cache=keep_cache,
            device=self._tiers[0].pages.device,
        )

    def raised(self, state: KeptState) -> tuple[KeptState | None, int]:
        """A pinned state of the second tier, now pinned in the first as well, and how many others had to leave it.

        None where there is no room.
        """
        pages, evicted = self._room(0, len(state.pages))
        if pages is None:
            return None, evicted
        first, lower = self._tiers[0], self._tiers[state.tier]
        with self._filling(first, pages):
            first.pages.copy(lower.pages, state.pages, pages)
        copy = KeptState(
            state.key, state.event_hash, state.num_events, state.first, state.num_rows, tier=0, pages=pages, pins=1
        )
        with self._lock:
            self._list(copy)
        return copy, evicted

    def keep(self, states: UserStates, new: Sequence[NewState]) -> int:
        """Keep some of ``states``, which may hold others too; returns how many others had to leave the first tier.

        A state for which there is no room beside those in use is not kept.
        """
        evicted, ready = 0, list[tuple[NewState, list[int]]]()
        try:
            for state in new:
                count = self.layout.num_pages(state.num_rows) - len(self._shared(state))
                pages, left = self._room(0, count)
                if pages is None and ready:  # those before it in this call may have to leave again
                    due, ready = ready, []
                    self._publish(states, due)
                    pages, more = self._room(0, count)
                    left += more
                evicted += left
                if pages is not None:
                    ready.append((state, pages))
            due, ready = ready, []
            self._publish(states, due)
        finally:
            with self._lock:
                for _, pages in ready:
                    self._tiers[0].pages.give_back(pages)
        return evicted

    # -- what an owner does ---------------------------------------------------------------------------------------

    def forget(self, keys: Iterable[Hashable]) -> None:
        """Drop the states of some keys; a request that is under way may keep one again."""
        with self._lock:
            for key in keys:
                self._unlist(key)

    def keys(self) -> list[Hashable]:
        """Keys of all kept states, least recently used first in each tier."""
        with self._lock:
            kept = (key for tier in self._tiers for key in tier.kept)
            return list(dict.fromkeys((*kept, *self._sinking)))

    def used_bytes(self) -> list[int]:
        """Bytes in use in each tier."""
        with self._lock:
            return [tier.pages.used_bytes for tier in self._tiers]

    # -- inside ---------------------------------------------------------------------------------------------------

    def _shared(self, state: NewState) -> list[int]:
        """Pages that a state takes over from its former self: those that are full."""
        if state.before is None:
            return []
        return state.before.pages[: state.before.num_rows // self.layout.page_rows]

    def _publish(self, states: UserStates, ready: Sequence[tuple[NewState, list[int]]]) -> None:
        """Fill pages and let requests find them."""
        if not ready:
            return
        first = self._tiers[0]
        with self._filling(first, [page for _, pages in ready for page in pages]):
            self._fill(first.pages, states, ready)
        with self._lock:
            for state, pages in ready:
                shared = self._shared(state)
                first.pages.share(shared)
                self._list(
                    KeptState(
                        state.key, state.event_hash, state.num_events, state.first, state.num_rows, 0, shared + pages
                    )
                )

    def _fill(self, memory: StatePages, states: UserStates, ready: Sequence[tuple[NewState, list[int]]]) -> None:
        size = self.layout.page_rows
        starts = [0 if state.before is None else state.before.num_rows for state, _ in ready]
        partial = [
            (state.before.pages[-1], pages[0])
            for state, pages in ready
            if state.before is not None and state.before.num_rows % size
        ]
        copied = {target for _, target in partial}
        blank = [pages[-1] for _, pages in ready if pages[-1] not in copied]
        if blank:
            memory.clear(blank)
        if partial:
            memory.copy(memory, [source for source, _ in partial], [target for _, target in partial])
        rows, num_rows = [state.row for state, _ in ready], [state.num_rows for state, _ in ready]
        memory.write(states, rows, num_rows, starts, [pages for _, pages in ready])

    @contextmanager
    def _filling(self, tier: _Tier, pages: Sequence[int]) -> Iterator[None]:
        """Give pages back where filling them fails."""
        try:
            yield
        except BaseException:
            with self._lock:
                tier.pages.give_back(pages)
            raise

    def _room(self, number: int, count: int) -> tuple[list[int] | None, int]:
        """Free pages of a tier, and how many states had to leave it; None where those in use leave too few."""
        tier, evicted = self._tiers[number], 0
        while True:
            with self._lock:
                missing = count - tier.pages.num_free
                if missing <= 0:
                    return tier.pages.take(count), evicted
                leaving = self._oldest(tier, missing)
                for state in leaving:
                    # Nobody finds it from here on, and it is pinned, so that its pages last until it is copied.
                    del tier.kept[state.key]
                    state.listed, state.pins = False, 1
                    if number + 1 < len(self._tiers):
                        self._sinking[state.key] = state
            if not leaving:
                return None, evicted
            evicted += len(leaving)
            try:
                if number + 1 < len(self._tiers):
                    for state in leaving:
                        self._move_down(state)
            finally:
                with self._lock:
                    for state in leaving:
                        self._sinks(state)
                self.unpin(leaving)

    def _oldest(self, tier: _Tier, missing: int) -> list[KeptState]:
        """States that may leave, least recently used first, as few as make room; none where all would not."""
        chosen: list[KeptState] = []
        for state in tier.kept.values():
            if missing <= 0:
                break
            if not state.pins:
                chosen.append(state)
                missing -= len(state.pages)
        return chosen if missing <= 0 else []

    def _move_down(self, state: KeptState) -> None:
        upper, lower = self._tiers[state.tier], self._tiers[state.tier + 1]
        pages, _ = self._room(state.tier + 1, len(state.pages))
        if pages is None:
            return
        with self._filling(lower, pages):
            lower.pages.copy(upper.pages, state.pages, pages)
        copy = KeptState(
            state.key, state.event_hash, state.num_events, state.first, state.num_rows, state.tier + 1, pages
        )
        with self._lock:
            if self._sinks(state) and not any(state.key in tier.kept for tier in self._tiers):
                lower.kept[copy.key] = copy
            else:  # forgotten, or a newer one came meanwhile
                copy.listed = False
                self._let_go(copy)

    def _sinks(self, state: KeptState) -> bool:
        """Whether a state was still on its way down; it is not from here on."""
        found = self._sinking.get(state.key) is state
        if found:
            del self._sinking[state.key]
        return found

    def _list(self, state: KeptState) -> None:
        self._unlist(state.key)
        self._tiers[state.tier].kept[state.key] = state

    def _unlist(self, key: Hashable) -> None:
        self._sinking.pop(key, None)
        for tier in self._tiers:
            old = tier.kept.pop(key, None)
            if old is not None:
                old.listed = False
                self._let_go(old)

    def _let_go(self, state: KeptState) -> None:
        if not state.listed and not state.pins:
            self._tiers[state.tier].pages.give_back(state.pages)
