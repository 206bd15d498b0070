"""A reranker in the chain of retrieval, ranking and rules: lists of the core in, orders out, on time.

Suffixes: C = candidates of a list, N = events of a history.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError as NotInTime

from recsys.errors import InputError, shown
from recsys.retrieval.history_sources.bundle import in_words
from recsys.retrieval.reordering import Reordered, ShortList
from recsys.retrieval.rerank.background_loop import start
from recsys.retrieval.rerank.fusion import fused_places, rerank_scores
from recsys.retrieval.rerank.item_text import item_texts
from recsys.retrieval.rerank.request import RerankItem, RerankRequest
from recsys.retrieval.rerank.reranker import Reranker, answered
from recsys.retrieval.rerank.result import RerankResult

__all__ = ["MOST_HISTORY", "RerankChain", "request_of"]

MOST_HISTORY = 50
"""Newest events that a reranker reads in words."""
_SOFT = 0.9
"""Part of the time after which a reranker is to come to its end; what is left is for coming to it."""

_LOGGER = logging.getLogger("recsys.rerank")


class RerankChain:
    """Reorders the first candidates of requests with a reranker, alone or fused with the order before it.

    The ranked order stays, and a note on the page says so, where the deadline passes or the reranker fails. Where
    some calls of a language model failed in time, the order is what the others gave, with a note.

    Example:
        >>> chain = RerankChain(reranker, top=20, weight=0.5, deadline_ms=300)              # doctest: +SKIP
        >>> page = rec.recommend("u7", k=10, reranker=chain)                                # doctest: +SKIP
    """

    def __init__(
        self,
        reranker: Reranker,
        *,
        top: int = 20,
        weight: float | None = None,
        deadline_ms: float | None = None,
        history_events: int = MOST_HISTORY,
    ) -> None:
        """Set what every request of this chain has in common.

        Args:
            reranker: any.
            top: candidates that it is given; those behind them keep their places.
            weight: of its score beside the earlier one, both standardised in their list, as `recsys evaluate --rerank`
                chooses it; None = its order alone, 0 = it is not asked.
            deadline_ms: milliseconds that it may take; the ``rerank_ms`` of a request can only shorten them.
            history_events: newest events that it reads in words.

        Raises:
            InputError: a number that cannot be meant.
        """
        if not isinstance(reranker, Reranker):
            raise InputError(f"a RerankChain is made of a Reranker, got {shown(reranker)}")
        for name, number in (("top", top), ("history_events", history_events)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InputError(f"{name} must be a positive integer, got {shown(number)}")
        if weight is not None and (isinstance(weight, bool) or not 0 <= weight < float("inf")):
            raise InputError(f"weight must be a number from 0, got {shown(weight)}")
        if deadline_ms is not None and (isinstance(deadline_ms, bool) or not 0 < deadline_ms < float("inf")):
            raise InputError(f"deadline_ms must be a positive number of milliseconds, got {shown(deadline_ms)}")
        self.reranker, self.weight, self.deadline_ms = reranker, weight, deadline_ms
        self.num_reordered, self.history_events = top, history_events

    def reorder(self, lists: Sequence[ShortList], *, deadline: float | None) -> list[Reordered]:
        """See :class:`recsys.retrieval.reordering.Reorders`."""
        if self.weight == 0:
            return [Reordered(places=range(len(one.row_C))) for one in lists]
        began = time.monotonic()
        if self.deadline_ms is not None:
            own = began + self.deadline_ms / 1000
            deadline = own if deadline is None else min(deadline, own)
        requests = [request_of(one, self.history_events) for one in lists]
        results, why = self._results(requests, began, deadline)
        if why is not None:
            spent = [_counts(result) for result in results] or [{}] * len(lists)
            return [
                Reordered(
                    places=range(len(one.row_C)),
                    notes=(why,),
                    counts=counts | {"rerank_failed": max(1, counts.get("rerank_failed", 0))},
                )
                for one, counts in zip(lists, spent, strict=True)
            ]
        return [self._order(one, result) for one, result in zip(lists, results, strict=True)]

    def _results(
        self, requests: Sequence[RerankRequest], began: float, deadline: float | None
    ) -> tuple[list[RerankResult], str | None]:
        """What the reranker says, as far as it is known, and why its orders are not taken; None where they are."""
        late = f"the reranker {self.reranker.name} did not answer in time; the order is that from before it"
        if deadline is not None and time.monotonic() >= deadline:
            return [], late
        soft = None if deadline is None else began + _SOFT * (deadline - began)
        running = start(answered(self.reranker, requests, soft))
        try:
            results = running.result(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        except NotInTime:
            running.cancel()
            return [], late
        except InputError:
            raise
        except Exception:
            _LOGGER.warning("the reranker %s failed", self.reranker.name, exc_info=True)
            return [], f"the reranker {self.reranker.name} failed; the order is that from before it"
        if soft is not None and time.monotonic() >= soft and not all(result.complete for result in results):
            return results, late
        return results, None

    def _order(self, one: ShortList, result: RerankResult) -> Reordered:
        notes = list(result.notes)
        if not result.complete:
            notes.append(f"the reranker {self.reranker.name} answered in part; the rest is in the order from before it")
        if self.weight is None:
            place = {item_id: at for at, item_id in enumerate(result.candidates)}
            places = [place[item_id] for item_id in result.ids]
        else:
            places = fused_places(one.score_C, rerank_scores(result), self.weight).tolist()
        return Reordered(places=places, notes=tuple(notes), counts=_counts(result))


def _counts(result: RerankResult) -> dict[str, int]:
    """What a result took and what was wrong with its answers, in whole numbers."""
    usage, faults = result.usage, result.faults
    return {
        "rerank_calls": usage.calls,
        "rerank_prompt_tokens": usage.prompt_tokens,
        "rerank_reused_tokens": usage.reused_tokens,
        "rerank_generated_tokens": usage.generated_tokens,
        "rerank_model_ms": round(1000 * usage.seconds),
        "rerank_cost_millionths": round(1_000_000 * usage.cost),
        "rerank_missing": faults.missing,
        "rerank_repeated": faults.repeated,
        "rerank_foreign": faults.foreign,
        "rerank_malformed": faults.malformed,
        "rerank_failed": faults.failed,
    }


def request_of(one: ShortList, history_events: int = MOST_HISTORY) -> RerankRequest:
    """A list of the core in a reranker's terms, with the texts of the snapshot that the list is of.

    Args:
        history_events: newest events that are given in words; all are given as events.
    """
    ids = one.words.items.take(one.row_C)
    item_N = one.history.item[-history_events:].tolist()
    texts = item_texts(one.items, [*one.row_C.tolist(), *(max(item, 0) for item in item_N)])
    read_C, read_N = texts[: len(ids)], texts[len(ids) :]
    events = in_words(one.words, one.history)
    return RerankRequest(
        candidates=tuple(
            RerankItem(item_id=item_id, text=text, score=score)
            for item_id, text, score in zip(ids, read_C, one.score_C.tolist(), strict=True)
        ),
        history=tuple(
            RerankItem(item_id=event.item_id, text=text if item >= 0 else "", actions=tuple(event.actions))
            for event, item, text in zip(events[-len(item_N) :] if item_N else [], item_N, read_N, strict=True)
        ),
        events=tuple(events),
        at=one.at,
        surface=one.words.surfaces[one.surface] if one.surface else None,
        user_K=one.user_K,
    )
