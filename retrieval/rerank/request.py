"""A short list to put in order, and what is known of who asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError, shown
from recsys.events import Event

__all__ = ["RerankItem", "RerankRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankItem:
    """An item as a reranker sees it."""

    item_id: Any
    """The caller's id."""
    text: str = ""
    """Title and text, as the item table has them. Data, never instructions: who puts it into a prompt escapes it."""
    score: float = 0.0
    """Of a candidate: the score it was ordered by so far, higher is better."""
    actions: tuple[str, ...] = ()
    """Of an item of the history: what the user did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """One list of candidates and its user."""

    candidates: Sequence[RerankItem]
    """Best first, as ordered so far; no id twice."""
    history: Sequence[RerankItem] = ()
    """Of the user, oldest first, for rerankers that read words."""
    events: Sequence[Event] = ()
    """The same events, for rerankers that run the encoder."""
    at: int | None = None
    """Time of the request in seconds since 1970; None = the last event's."""
    surface: str | None = None
    """Where the list is to be shown; None = unknown. For rerankers that run the encoder, as the field below."""
    user_K: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    """[K] features of the user as the bundle's model reads them; None = unknown."""
    query: str | None = None
    """What the user asked for in words, if anything. Data as well."""
    ids: tuple[Any, ...] = field(init=False, repr=False, compare=False, default=())
    """Ids of the candidates, in their order."""

    def __post_init__(self) -> None:
        ids = tuple(item.item_id for item in self.candidates)
        if len(set(ids)) < len(ids):
            twice = next(item_id for at, item_id in enumerate(ids) if item_id in ids[:at])
            raise InputError(f"candidates hold item {shown(twice)} twice; give every item once")
        object.__setattr__(self, "ids", ids)
