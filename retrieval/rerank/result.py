"""The order a reranker gave, checked, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys.retrieval.rerank.lm.usage import Usage

__all__ = ["Faults", "RerankResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What was wrong with the answers behind one result; all of it was mended before the order was made."""

    missing: int = 0
    """Candidates that an answer left out; they keep their earlier order."""
    repeated: int = 0
    foreign: int = 0
    """Ids or labels that are no candidate's."""
    malformed: int = 0
    """Answers without any readable order."""
    failed: int = 0
    """Calls without an answer: errors, timeouts, a passed deadline."""

    def __add__(self, other: Faults) -> Faults:
        return Faults(
            missing=self.missing + other.missing,
            repeated=self.repeated + other.repeated,
            foreign=self.foreign + other.foreign,
            malformed=self.malformed + other.malformed,
            failed=self.failed + other.failed,
        )

    def __bool__(self) -> bool:
        return self != Faults()


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """A permutation of the candidates of one request. It cannot hold anything else: the constructor checks."""

    ids: tuple[Any, ...]
    """All candidates of the request, best first."""
    candidates: Sequence[Any] = field(repr=False)
    """Ids of the request, in its order."""
    scores: tuple[float, ...] | None = None
    """In the order of ``candidates``, higher is better and agreeing with ``ids``; None where there is an order only."""
    complete: bool = True
    """False where the deadline passed or calls failed, so that the order is the earlier one, wholly or in part."""
    usage: Usage = field(default_factory=Usage)
    faults: Faults = field(default_factory=Faults)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.candidates) or set(self.ids) != set(self.candidates):
            raise ValueError("a result must hold exactly the candidates of its request")
        if self.scores is not None and len(self.scores) != len(self.candidates):
            raise ValueError(f"{len(self.scores)} scores for {len(self.candidates)} candidates")

    @classmethod
    def unchanged(cls, candidates: Sequence[Any], note: str, **fields: Any) -> RerankResult:
        """The earlier order, and why."""
        return cls(ids=tuple(candidates), candidates=candidates, complete=False, notes=(note,), **fields)
