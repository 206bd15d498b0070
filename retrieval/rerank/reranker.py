"""What every reranker is: lists in, the same items in a better order out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from recsys.retrieval.reordering import Reordered, ShortList
from recsys.retrieval.rerank.background_loop import run
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import RerankResult

__all__ = ["Reranker", "answered"]


class Reranker(ABC):
    """Orders lists. All methods may be called from any thread and any event loop.

    A result is a permutation of its request's candidates whatever a model answers; only what the caller did wrong is
    raised, as :class:`recsys.errors.InputError`. The other requests of a batch do not change a result.
    """

    name: str
    """Of the method, as tables and the command line call it."""
    num_reordered: int = 20
    """Candidates that it is given by ``Recommender.recommend(…, reranker=…)``."""

    @abstractmethod
    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """Order every list.

        Args:
            requests: of any number of users; a list may be empty or hold one candidate.
            deadline: a reading of :func:`time.monotonic`; soon after it results are returned, with the earlier order
                where there is no better one yet, and ``complete`` False.
        """

    def rerank(self, requests: Sequence[RerankRequest], *, deadline: float | None = None) -> list[RerankResult]:
        """As :meth:`rerank_async`, for callers without an event loop (within one it blocks the loop)."""
        return run(self.rerank_async(requests, deadline=deadline))

    def reorder(self, lists: Sequence[ShortList], *, deadline: float | None) -> list[Reordered]:
        """See :class:`recsys.retrieval.reordering.Reorders`; as a :class:`~recsys.retrieval.rerank.chain.RerankChain`
        of this reranker does it."""
        from recsys.retrieval.rerank.chain import RerankChain

        return RerankChain(self, top=self.num_reordered).reorder(lists, deadline=deadline)


async def answered(
    reranker: Reranker, requests: Sequence[RerankRequest], deadline: float | None = None
) -> list[RerankResult]:
    """What a reranker gives, one result for each request and of its candidates, whoever wrote the reranker.

    Raises:
        ValueError: it gives something else, which nobody can use.
    """
    results = list(await reranker.rerank_async(requests, deadline=deadline))
    if len(results) != len(requests):
        raise ValueError(f"the reranker {reranker.name} gave {len(results)} results for {len(requests)} lists")
    for result, request in zip(results, requests, strict=True):
        if tuple(result.candidates) != request.ids:
            raise ValueError(f"the reranker {reranker.name} gave the order of another list than it was asked about")
    return results
