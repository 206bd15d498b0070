"""What log-probabilities of semantic IDs count in the hybrid score, as checkpoints and bundles hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["HybridWeights"]

_MOST_HITS = 1_000_000
"""Of one search: lists are made at this length, whatever the catalogue holds."""


@dataclass(frozen=True, slots=True)
class HybridWeights:
    """What the log-probabilities count beside the dense score, and how many hits each search gives to the union."""

    codes: dict[str, float] = field(default_factory=dict)
    """Weight of each retriever by semantic IDs, by name."""
    cold: float = 0.0
    """Added to the score of items without training events."""
    budgets: dict[str, int] = field(default_factory=dict)
    """Hits of each search, by name; 0 = the search is left out. Where k is larger, ``dense`` gives k."""
    learned: float = 0.0
    """Added to what the learned score counts in the dense one: below 0 where the codes take its place in part."""
    holds_new: bool = False
    """Whether items without training events keep the places that the dense score gives them."""

    def __post_init__(self) -> None:
        for name, weight in {**self.codes, "cold": self.cold, "learned": self.learned}.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= 1e30:
                raise ValueError(f"the weight of {name} in the hybrid score must be a finite number, got {weight!r}")
        for name, hits in self.budgets.items():
            if isinstance(hits, bool) or not isinstance(hits, int) or not 0 <= hits <= _MOST_HITS:
                raise ValueError(f"the hits of {name} in the hybrid score must be 0 to {_MOST_HITS:,}, got {hits!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HybridWeights:
        learned = float(values.get("learned", 0.0))
        holds_new = bool(values.get("holds_new", False))
        return cls(dict(values["codes"]), float(values["cold"]), dict(values["budgets"]), learned, holds_new)
