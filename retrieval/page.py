"""What a recommendation request returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

__all__ = ["Hit", "Page"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One recommended item."""

    item_id: Any
    """The caller's id."""
    score: float
    """Score of the retriever that found it; comparable within one retriever and request only."""
    actions: dict[str, float] = field(default_factory=dict)
    """Probability per action, each on its own; empty where no ranking was asked for."""
    retriever: str = "dense"
    """Who found it; ``pin`` for an item that a rule put there."""
    propensity: float = 1.0
    """Probability with which it was taken for its place, given the places above it; below 1 only where
    :class:`recsys.retrieval.rules.Explore` leaves it to chance."""


@dataclass(frozen=True, slots=True)
class Page(Sequence[Hit]):
    """Hits in the order to show them; at most as many as were asked for, perhaps none."""

    hits: tuple[Hit, ...]
    num_reachable: int
    """Items that the request's exclusions, allow list and history filter left to choose from."""
    notes: tuple[str, ...] = ()
    """Sentences about this answer: why it is short, what was not known."""
    version: str = ""
    """What answered: the hash of the bundle and the number of the update; no page mixes two."""
    timings: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Milliseconds by stage, and counts; see :meth:`recsys.retrieval.timings.BatchTimings.of`."""

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, at: int) -> Hit: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, at: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[at]

    @property
    def item_ids(self) -> list[Any]:
        """The callers' ids, in order."""
        return [hit.item_id for hit in self.hits]
