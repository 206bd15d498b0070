"""Lists put through a reranker, a few at a time, with what it took.

Suffixes: Q = lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.reranker import Reranker
from recsys.retrieval.rerank.result import Faults, RerankResult

__all__ = ["RerankRun", "run_lists", "seconds_in_turns", "shuffled"]

AT_ONCE = 4
"""Lists of one call: enough to fill a batch of a language model on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRun:
    """Results of the first Q lists that there was time for."""

    results: tuple[RerankResult, ...]
    seconds: float

    def __len__(self) -> int:
        return len(self.results)

    @property
    def orders(self) -> list[tuple[Any, ...]]:
        """Ids of each list, best first."""
        return [result.ids for result in self.results]

    @property
    def usage(self) -> Usage:
        return sum((result.usage for result in self.results), Usage())

    @property
    def faults(self) -> Faults:
        return sum((result.faults for result in self.results), Faults())

    def costs(self) -> dict[str, Any]:
        """Tokens and milliseconds per list, and what was wrong with the answers of all."""
        count, usage, faults = max(len(self), 1), self.usage, self.faults
        return {
            "ms_per_list": 1e3 * self.seconds / count,
            "calls_per_list": usage.calls / count,
            "prompt_tokens_per_list": usage.prompt_tokens / count,
            "reused_tokens_per_list": usage.reused_tokens / count,
            "generated_tokens_per_list": usage.generated_tokens / count,
            "cost": usage.cost,
            "num_incomplete": sum(not result.complete for result in self.results),
            "faults": {
                name: getattr(faults, name) for name in ("missing", "repeated", "foreign", "malformed", "failed")
            },
        }


def run_lists(
    reranker: Reranker,
    requests: Sequence[RerankRequest],
    *,
    seconds: float | None = None,
    at_once: int = AT_ONCE,
    advance: Callable[[int], None] | None = None,
) -> RerankRun:
    """Order lists until they or the time are used up; a list that was begun is finished.

    Args:
        seconds: no further lists are begun after so many.
        at_once: lists of one call.
        advance: told how many more are done.
    """
    results: list[RerankResult] = []
    began = time.perf_counter()
    for low in range(0, len(requests), at_once):
        if results and seconds is not None and time.perf_counter() - began >= seconds:
            break
        part = requests[low : low + at_once]
        results += reranker.rerank(part)
        if advance is not None:
            advance(len(part))
    return RerankRun(results=tuple(results), seconds=time.perf_counter() - began)


def seconds_in_turns(
    rerankers: Sequence[Reranker],
    requests: Sequence[RerankRequest],
    *,
    at_once: int = AT_ONCE,
    advance: Callable[[int], None] | None = None,
) -> list[float]:
    """Seconds of each reranker for the same lists, a few at a time by turns, so that other work slows all alike.

    Args:
        requests: lists; the first one is not counted, since loading is not what is measured.
        at_once: lists of one call.
        advance: told how many more are done.
    """
    seconds = [0.0] * len(rerankers)
    parts = [requests[:1], *(requests[low : low + at_once] for low in range(1, len(requests), at_once))]
    for turn, part in enumerate(parts):
        places = range(len(rerankers))
        for place in places if turn % 2 == 0 else reversed(places):
            began = time.perf_counter()
            rerankers[place].rerank(part)
            seconds[place] += time.perf_counter() - began if turn else 0.0
        if advance is not None:
            advance(len(part))
    return seconds


def shuffled(requests: Sequence[RerankRequest], seed: int) -> list[RerankRequest]:
    """The same lists with their candidates in random order; each score goes with its item."""
    made = []
    for number, request in enumerate(requests):
        order = np.random.default_rng([seed, number]).permutation(len(request.candidates))
        made.append(replace(request, candidates=tuple(request.candidates[int(at)] for at in order)))
    return made
