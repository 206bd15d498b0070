"""Candidates two by two: which of them a model says the user would rather choose (PRP, arXiv 2306.17563)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.in_step import in_step
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, LanguageModel
from recsys.retrieval.rerank.pair_sorts import SORTS, Pair, PairWork, win_shares
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.prompted import PromptedReranker, at_least
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import Faults, RerankResult
from recsys.retrieval.rerank.tally import DEADLINE, Tally, passed
from recsys.retrieval.rerank.word_choice import WordChoice

__all__ = ["PairwiseReranker"]


class PairwiseReranker(PromptedReranker):
    """Orders by comparisons, each asked in both orders.

    Where both answers name the same item it is preferred; where they contradict each other (a model that likes the
    first of two, say) neither is. No pair is asked twice for one request. Its prompt has the placeholder
    ``candidates``; the labels of the two are its option ``answers``.
    """

    name = "pairwise"
    default_prompt = "pairwise"
    needed = frozenset({"candidates"})

    def __init__(
        self,
        lm: LanguageModel,
        *,
        sort: str = "heap",
        top: int = 10,
        prompt: str | Path | Prompt | None = None,
        history_items: int | None = None,
        item_chars: int | None = None,
    ) -> None:
        """
        Args:
            sort: ``all`` pairs, whose scores are the shares of pairs won; ``heap``; or ``sliding``, that many passes
                of neighbours changing places from the tail, ended early by one that changes nothing.
            top: how many of the best are put in order; those behind keep their earlier order (``heap``), or are in
                the order that the passes left (``sliding``).
            prompt, history_items, item_chars: as :class:`PromptedReranker` says.
        """
        super().__init__(lm, prompt=prompt, history_items=history_items, item_chars=item_chars)
        if sort not in SORTS:
            raise InputError(f"sort {shown(sort)} is unknown; give one of {', '.join(SORTS)}")
        self.sort = sort
        self.top = at_least(1, "top", top, 10)
        self.name = f"pairwise-{sort}"
        self.words = self.answers(("A", "B"))

    def questions(self, request: RerankRequest) -> list[Chat]:
        """The first two candidates, in both orders."""
        return self._both(request, (0, 1)) if len(request.candidates) > 1 else []

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; the comparisons that the requests' sorts wait for are one batch."""
        choice = WordChoice(self.lm, self.words, self.prompt.prefill, deadline)
        tallies = [Tally() for _ in requests]
        known: list[dict[Pair, float]] = [{} for _ in requests]
        works: list[PairWork] = [SORTS[self.sort](len(request.candidates), self.top) for request in requests]
        step = in_step(works)
        try:
            asked = next(step)
            while True:
                await self._compare(requests, asked, choice, tallies, known, deadline)
                asked = step.send([known[at].get(pair, 0.5) for at, pair in asked])
        except StopIteration as done:
            orders: list[list[int]] = done.value
        results = []
        for request, places, tally, pairs in zip(requests, orders, tallies, known, strict=True):
            if choice.spoken and pairs:
                tally.note("no log-probabilities: the label that was said counts")
            count = len(places)
            scores = win_shares(count, pairs) if self.sort == "all" and len(pairs) == count * (count - 1) // 2 else None
            results.append(tally.result(request, places, scores))
        return results

    async def _compare(
        self,
        requests: Sequence[RerankRequest],
        asked: Sequence[tuple[int, Pair]],
        choice: WordChoice,
        tallies: Sequence[Tally],
        known: Sequence[dict[Pair, float]],
        deadline: float | None,
    ) -> None:
        """Ask for the pairs that are not known yet. One without an answer counts as undecided."""
        new = [(at, pair) for at, pair in asked if pair not in known[at]]
        if passed(deadline):
            for at, _ in new:
                if not tallies[at].faults.failed:
                    tallies[at].fail(DEADLINE)
            return
        answers = iter(await choice.ask([chat for at, pair in new for chat in self._both(requests[at], pair)]))
        for at, pair in new:
            there, back = next(answers), next(answers)
            whole = [tallies[at].add(there), tallies[at].add(back)]
            known[at][pair] = 0.5
            if all(whole):
                votes = [_first_preferred(there), _first_preferred(back)]
                tallies[at].faults += Faults(malformed=votes.count(None))
                if None not in votes and votes[0] != votes[1]:
                    known[at][pair] = float(votes[0] is True)

    def _both(self, request: RerankRequest, pair: Pair) -> list[Chat]:
        lines = (self.lines(request, places, self.words) for places in (pair, pair[::-1]))
        return [self.chat(request, candidates=text) for text in lines]


def _first_preferred(answer: Choice) -> bool | None:
    """Whether the first of two is preferred; None where the answer is neither."""
    first, second = answer.log_probs
    if math.isnan(first) or math.isnan(second) or max(first, second) == -math.inf:
        return None
    return first > second
