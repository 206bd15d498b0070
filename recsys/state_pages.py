"""Memory for user states, taken once and cut into pages of cached rows.

A page that holds rows is never written again: a state that grows takes new pages for its new rows and shares the full
ones with its former self, so that whoever reads the former state goes on reading it. What a state holds once (last
output row, counts, recent items) stands beside its last page, which no other state has.

Suffixes: B = states, P = pages of a state, N = pages of the memory, R = rows of a page, H = heads, E = width of a
head, L = cached rows, D = width, I = integers held once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.errors import InputError
from recsys.layouts import ActionInput
from recsys.packing import ranges
from recsys.state_int8 import dequantised, quantised
from recsys.state_layout import NUM_FIXED, StateLayout
from recsys.user_state import UserStates

__all__ = ["StatePages"]

Ints = NDArray[np.int64]


class StatePages:
    """Pages of one tier. Reading and writing need no lock; taking and giving back pages needs the caller's.

    On a GPU all threads use one stream, so that a page given back is read by whoever still does before it is written.

    Args:
        layout: sizes of the states.
        max_bytes: taken at once, rounded down to whole pages; the system commits memory as pages are first written.
        device: where the pages are.
    Raises:
        InputError: there is not so much memory.
    """

    def __init__(self, layout: StateLayout, max_bytes: int, device: torch.device) -> None:
        self.layout, self.device = layout, device
        total = max(1, max_bytes // layout.page_bytes)
        self.num_pages = total - 1
        """Pages for states; page 0 stays zero and stands where a state has no more pages."""
        shape = (total, layout.page_rows)
        heads = (layout.num_heads, layout.head_dim)
        self._numbers: list[Tensor] = []
        """Per layer keys, then values [N, R, H, E]."""
        self._scales: list[Tensor] = []
        """[N, R, H] of the same, with int8 alone."""
        try:
            with torch.inference_mode(False):
                for _ in range(2 * layout.num_layers):
                    if layout.storage == "int8":
                        self._numbers.append(torch.empty(*shape, *heads, dtype=torch.int8, device=device))
                        self._scales.append(torch.empty(*shape, heads[0], device=device))
                    else:
                        self._numbers.append(torch.empty(*shape, *heads, device=device))
                self._time_NR = torch.empty(shape, dtype=torch.int64, device=device)
                self._known_NR = torch.empty(shape, dtype=torch.bool, device=device)
                self._once_NI = torch.empty(total, layout.num_integers, dtype=torch.int64, device=device)
                self._last_ND = torch.empty(total, layout.dim, device=device)
        except (RuntimeError, MemoryError) as error:
            raise InputError(
                f"{max_bytes} bytes for user states cannot be had on {device} ({str(error).splitlines()[0]}); "
                "give fewer (state_bytes)"
            ) from None
        self._clear(torch.zeros(1, dtype=torch.int64, device=device))
        self._holders_N = np.zeros(total, dtype=np.int32)
        self._freed: list[int] = []
        self._fresh = 1
        """First page that was never taken."""

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        return len(self._freed) + self.num_pages + 1 - self._fresh

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that states hold."""
        return (self.num_pages - self.num_free) * self.layout.page_bytes

    def take(self, count: int) -> list[int]:
        """Some free pages, each with one holder."""
        assert count <= self.num_free
        again = min(count, len(self._freed))
        pages = [self._freed.pop() for _ in range(again)]
        pages += range(self._fresh, self._fresh + count - again)
        self._fresh += count - again
        self._holders_N[pages] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One more holder of each page."""
        self._holders_N[pages] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One holder fewer of each page; a page without holders is free."""
        self._holders_N[pages] -= 1
        self._freed += [page for page in pages if not self._holders_N[page]]

    # -- contents -------------------------------------------------------------------------------------------------

    def write(
        self,
        states: UserStates,
        rows: Sequence[int],
        num_rows: Sequence[int],
        first_row: Sequence[int],
        pages: Sequence[Sequence[int]],
    ) -> None:
        """Write states into pages just taken, which nobody reads yet.

        Args:
            states: on the device of the pages. rows: which of them. num_rows: cached rows of each.
            first_row: the first row to write: a multiple of ``page_rows``, or within the first of the new pages, whose
                earlier rows :meth:`copy` has brought.
            pages: the new pages of each state, in order.
        """
        size, width = self.layout.page_rows, states.time_BL.shape[1]
        chosen_B, low_B = np.asarray(rows, dtype=np.int64), np.asarray(first_row, dtype=np.int64)
        count_B = np.asarray(num_rows, dtype=np.int64) - low_B
        page_N = np.concatenate([np.asarray(own, dtype=np.int64) for own in pages])
        size_B = np.array([len(own) for own in pages], dtype=np.int64)
        row_L = ranges(low_B, count_B)
        nth_L = np.repeat(np.cumsum(size_B) - size_B - low_B // size, count_B) + row_L // size
        to_L = self._index(page_N[nth_L] * size + row_L % size)
        from_L = self._index(ranges(chosen_B * width + low_B, count_B))

        def put(target: Tensor, values_L: Tensor) -> None:
            target.flatten(0, 1).index_copy_(0, to_L, values_L)

        for number, source in enumerate(part for layer in states.cache for part in layer):
            values_L = source.flatten(0, 1).index_select(0, from_L)
            if self._scales:
                values_L, scale_L = quantised(values_L)
                put(self._scales[number], scale_L)
            put(self._numbers[number], values_L)
        put(self._time_NR, states.time_BL.flatten().index_select(0, from_L))
        put(self._known_NR, states.time_known_BL.flatten().index_select(0, from_L))
        last_B, chosen = self._index(page_N[np.cumsum(size_B) - 1]), self._index(chosen_B)
        self._once_NI.index_copy_(0, last_B, _integers(states).index_select(0, chosen))
        self._last_ND.index_copy_(0, last_B, states.last_BD.index_select(0, chosen))

    def clear(self, pages: Sequence[int]) -> None:
        """Set pages to zero: the last one of a state holds rows that are none."""
        self._clear(self._index(np.asarray(pages, dtype=np.int64)))

    def copy(self, source: StatePages, from_pages: Sequence[int], to_pages: Sequence[int]) -> None:
        """Copy whole pages, as they are stored, from another tier or from elsewhere in this one."""
        from_N = source._index(np.asarray(from_pages, dtype=np.int64))
        to_N = self._index(np.asarray(to_pages, dtype=np.int64))
        for ours, theirs in zip(self._tensors(), source._tensors(), strict=True):
            ours.index_copy_(0, to_N, theirs.index_select(0, from_N).to(self.device))

    def read(
        self, pages: Sequence[Sequence[int]], num_rows: Sequence[int], *, keep_cache: bool, device: torch.device
    ) -> UserStates:
        """The states in some pages, copied out; ``user_BD`` is left empty.

        Args:
            pages: all pages of each state, in order; at least one each. num_rows: cached rows of each.
            keep_cache: False leaves keys, values and times out.
        """
        layout = self.layout
        last_B = self._index(np.array([own[-1] for own in pages], dtype=np.int64))
        once_BI = self._once_NI.index_select(0, last_B).to(device)
        width = max(num_rows) if keep_cache else 0
        table_BP = np.zeros((len(pages), layout.num_pages(width)), dtype=np.int64)
        if keep_cache:
            for row, own in zip(table_BP, pages, strict=True):
                row[: len(own)] = own
        index = self._index(table_BP.ravel())

        def rows(stored: Tensor) -> Tensor:
            found = stored.index_select(0, index).view(len(pages), -1, *stored.shape[2:])
            return found[:, :width]

        def floats(number: int) -> Tensor:
            values = rows(self._numbers[number])
            if self._scales:
                values = dequantised(values, rows(self._scales[number]))
            return values.to(device)

        num_rows_B, num_events_B, first_B, last_time_B, yes_B, known_B, hidden_B, age_B = once_BI[:, :NUM_FIXED].unbind(
            1
        )
        return UserStates(
            cache=[(floats(2 * n), floats(2 * n + 1)) for n in range(layout.num_layers)] if keep_cache else [],
            num_rows_B=num_rows_B,
            num_events_B=num_events_B,
            first_B=first_B,
            time_BL=rows(self._time_NR).to(device),
            time_known_BL=rows(self._known_NR).to(device),
            last_BD=self._last_ND.index_select(0, last_B).to(device),
            last_time_B=last_time_B,
            last_actions=ActionInput(yes_B, known_B, hidden_B.bool()),
            positive_age_B=age_B,
            recent_BM=once_BI[:, NUM_FIXED : NUM_FIXED + layout.num_recent],
            past_BX=once_BI[:, NUM_FIXED + layout.num_recent :],
            user_BD=torch.empty(len(pages), 0, device=device),
        )

    def _tensors(self) -> list[Tensor]:
        return [*self._numbers, *self._scales, self._time_NR, self._known_NR, self._once_NI, self._last_ND]

    def _clear(self, page_N: Tensor) -> None:
        for stored in self._tensors():
            stored.index_fill_(0, page_N, 0)

    def _index(self, values: Ints) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def _integers(states: UserStates) -> Tensor:
    """[B, I] what states hold once, but for the last output row."""
    actions = states.last_actions
    columns = (
        states.num_rows_B,
        states.num_events_B,
        states.first_B,
        states.last_time_B,
        actions.yes,
        actions.known,
        actions.hidden.long(),
        states.positive_age_B,
    )
    return torch.cat([torch.stack(columns, 1), states.recent_BM, states.past_BX], 1)
