"""Settings of a beam search over semantic IDs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BeamConfig", "Normalise"]

Normalise = Literal["all", "children"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamConfig:
    """How wide and how long to search."""

    widths: tuple[int, ...] = (50,)
    """Prefixes kept after each level; the last number holds for all deeper levels."""
    normalise: Normalise = "all"
    """Softmax over all codes of a level, or over those that continue the prefix in the trie, as the decoder was
    trained."""
    num_groups: int = 1
    """Groups that the prefixes of the first level are dealt out to; each one keeps its share of every deeper width, so
    that no first code can take all places (diverse beam search, arXiv 1610.02424, for semantic IDs)."""
    mass: float = 1.0
    """After each level only the best prefixes are kept that hold this share of the probability among the candidates
    (width by probability mass, as in dynamic-width speculative beam decoding, arXiv 2409.16560); 1 = all."""
    least: int = 8
    """Prefixes that are kept whatever they hold."""
    deadline_ms: float | None = None
    """Past it no further level is decoded: items below the prefixes found so far are returned; None = no limit."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"BeamConfig.widths must be positive numbers, at least one, got {self.widths}")
        if self.num_groups < 1 or min(self.widths) < self.num_groups:
            raise ValueError(
                f"BeamConfig.num_groups must be from 1 to the smallest width, got {self.num_groups} for {self.widths}"
            )
        if not 0.0 < self.mass <= 1.0:
            raise ValueError(f"BeamConfig.mass must be above 0 and at most 1, got {self.mass!r}")
        if self.least < 1:
            raise ValueError(f"BeamConfig.least must be positive, got {self.least!r}")
        if self.deadline_ms is not None and not self.deadline_ms >= 0:
            raise ValueError(f"BeamConfig.deadline_ms must be at least 0, got {self.deadline_ms!r}")
        if self.normalise not in ("all", "children"):
            raise ValueError(f"BeamConfig.normalise must be 'all' or 'children', got {self.normalise!r}")

    def width(self, level: int) -> int:
        """Prefixes kept after a level."""
        return self.widths[min(level, len(self.widths) - 1)]
