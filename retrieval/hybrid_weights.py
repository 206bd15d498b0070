"""What log-probabilities of semantic IDs count in the hybrid score, as checkpoints and bundles hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["HybridWeights"]


@dataclass(frozen=True, slots=True)
class HybridWeights:
    """What the log-probabilities count beside the dense score, and how many hits each search gives to the union."""

    codes: dict[str, float] = field(default_factory=dict)
    """Weight of each retriever by semantic IDs, by name."""
    cold: float = 0.0
    """Added to the score of items without training events."""
    budgets: dict[str, int] = field(default_factory=dict)
    """Hits of each search, by name; k is taken where it is larger and the search is that of ``dense``."""
    learned: float = 0.0
    """Added to what the learned score counts in the dense one: below 0 where the codes take its place in part."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HybridWeights:
        learned = float(values.get("learned", 0.0))
        return cls(dict(values["codes"]), float(values["cold"]), dict(values["budgets"]), learned)
