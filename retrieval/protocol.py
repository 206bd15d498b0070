"""What every retriever promises.

Suffixes: B = users, I = items, K = hits, C = candidates, E = exclusions, N = allowed items.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from recsys.index.hits import Hits
from recsys.user_state import UserStates

__all__ = ["CodeRetriever", "Retriever", "source_labels"]


@runtime_checkable
class Retriever(Protocol):
    """Finds items for user states. Scores compare within one retriever and request only."""

    name: str
    """As in flags, JSON and Python."""
    reads_cache: bool
    """Whether the states must hold keys and values."""
    lists_only: bool
    """Whether :meth:`scores` costs so much more than a search that evaluation looks at lists instead."""
    sources: tuple[str, ...]
    """Names of the searches that it joins, for :class:`recsys.index.hits.SourcedHits`; empty where it is one."""

    def search(
        self,
        states: UserStates,
        k: int,
        *,
        at_B: Tensor,
        surface_B: Tensor,
        exclude_QE: Tensor | None = None,
        allow_N: Tensor | None = None,
    ) -> Hits:
        """The k best items of each user.

        Args:
            states: of B users.
            k: at least 1.
            at_B: [B] int64 time of each request.
            surface_B: [B] int64 surface of each request, 0 = unknown.
            exclude_QE: [B, E] int64 items that a user must not get, padded with -1.
            allow_N: [N] int64, strictly rising: nothing else is returned to anybody.

        Returns:
            Best first; equal scores go to the smaller id; unfilled places are (-1, -inf).
        """
        ...

    def scores(self, states: UserStates, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, I] float32 scores of the whole catalogue, exclusions not applied."""
        ...


class CodeRetriever(Retriever, Protocol):
    """A retriever by semantic IDs that can say the log-probability of any item."""

    def scores_of(self, states: UserStates, item_BC: Tensor, *, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, C] float32 log-probabilities in nats; padded places (−1) mean nothing."""
        ...


def source_labels(retriever: Retriever) -> list[str]:
    """What hits of a retriever are called: its name, or its name and where it had each of them from."""
    return [f"{retriever.name}/{source}" for source in retriever.sources] or [retriever.name]
