"""What the core hands to whatever reorders the first candidates of a request, and what it takes back.

The core knows this protocol and no reranker: one is an object that a caller gives with a request.

Suffixes: C = candidates of a list, best first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import InputError, shown
from recsys.events import History
from recsys.vocabulary import Vocabulary

__all__ = ["Reordered", "Reorders", "ShortList", "check_reorders", "reordered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortList:
    """The first candidates of one request and who asks; everything is of the snapshot that answers the request."""

    items: pl.DataFrame
    """The item table: row i is item i."""
    words: Vocabulary
    row_C: NDArray[np.int64]
    """Items in their present order."""
    score_C: NDArray[np.float64]
    """By which they stand in it, falling."""
    history: History
    """Of the user who asks, and of nobody else."""
    at: int
    """Time of the request, as the data's timestamps count."""
    surface: int = 0
    """Of the request; 0 = unknown."""
    user_K: NDArray[np.float32] | None = None
    """Features of the user as the bundle's model reads them; None = unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reordered:
    """The order that a list gets."""

    places: Sequence[int]
    """Places in the earlier order, from 0, each once: the new first one first."""
    notes: tuple[str, ...] = ()
    """For :attr:`recsys.retrieval.page.Page.notes`."""
    counts: dict[str, int] = field(default_factory=dict)
    """For ``Page.timings["counts"]``."""


@runtime_checkable
class Reorders(Protocol):
    """Puts short lists in another order. May be called from several threads at once."""

    num_reordered: int
    """Candidates of a list that it wants at most; those behind them keep their places."""

    def reorder(self, lists: Sequence[ShortList], *, deadline: float | None) -> Sequence[Reordered]:
        """The order of every list; a failure of its own gives the earlier order and a note.

        Args:
            lists: none is empty.
            deadline: a reading of :func:`time.monotonic`, past which the earlier orders are to be returned.

        Raises:
            InputError: what its owner did wrong.
        """
        ...


def check_reorders(reranker: Any, rerank_ms: Any) -> None:
    """Check the two fields of a request.

    Raises:
        InputError: something that cannot reorder, or a time that is none.
    """
    if reranker is not None:
        wanted = getattr(reranker, "num_reordered", None)
        if not callable(getattr(reranker, "reorder", None)) or isinstance(reranker, type):
            raise InputError(f"reranker must be a Reranker or a RerankChain, got {shown(reranker)}")
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise InputError(f"reranker: num_reordered must be a positive integer, got {shown(wanted)}")
    if rerank_ms is not None:
        if reranker is None:
            raise InputError("rerank_ms is the time of a reranker; give reranker too")
        if isinstance(rerank_ms, bool) or not isinstance(rerank_ms, (int, float)) or not 0 < rerank_ms < float("inf"):
            raise InputError(f"rerank_ms must be a positive number of milliseconds, got {shown(rerank_ms)}")


def reordered(asked: Sequence[tuple[Reorders, float | None, ShortList]]) -> list[Reordered]:
    """Ask the rerankers of several requests, all at the same time; requests with equal ones are asked together.

    Args:
        asked: of each request the reranker, its milliseconds from now on (None = no limit), and the list.

    Returns:
        checked orders: what is no order of the list is replaced by the earlier one, with a note.

    Raises:
        InputError: as the rerankers do.
    """
    began = time.monotonic()
    groups: dict[tuple[int, float | None], list[int]] = {}
    for number, (reranker, milliseconds, _) in enumerate(asked):
        groups.setdefault((id(reranker), milliseconds), []).append(number)
    calls = [
        (
            asked[numbers[0]][0],
            [asked[number][2] for number in numbers],
            None if milliseconds is None else began + milliseconds / 1000,
        )
        for (_, milliseconds), numbers in groups.items()
    ]
    if len(calls) == 1:
        answers = [_orders(*calls[0])]
    else:
        with ThreadPoolExecutor(max(len(calls), 1), thread_name_prefix="recsys-reorder") as threads:
            answers = list(threads.map(lambda call: _orders(*call), calls))
    found = {
        number: order
        for numbers, orders in zip(groups.values(), answers, strict=True)
        for number, order in zip(numbers, orders, strict=True)
    }
    return [found[number] for number in range(len(asked))]


def _orders(reranker: Reorders, lists: Sequence[ShortList], deadline: float | None) -> list[Reordered]:
    orders = reranker.reorder(lists, deadline=deadline)
    if len(orders) != len(lists):
        raise RuntimeError(f"a reranker gave {len(orders)} orders for {len(lists)} lists")
    return [_checked(order, one) for order, one in zip(orders, lists, strict=True)]


def _checked(order: Reordered, one: ShortList) -> Reordered:
    unchanged = range(len(one.row_C))
    if sorted(order.places) == list(unchanged):
        return order
    note = "the reranker gave no order of the candidates; they are in the order from before it"
    return Reordered(places=unchanged, notes=(*order.notes, note), counts=order.counts)
