"""A window of candidates at a time, ordered by one look at what the model would say first (FIRST, arXiv 2406.15657)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from recsys.retrieval.rerank.in_step import in_step
from recsys.retrieval.rerank.item_lines import LETTERS, labels
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, LanguageModel
from recsys.retrieval.rerank.order import order_of_scores
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.prompted import PromptedReranker
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import Faults, RerankResult
from recsys.retrieval.rerank.tally import DEADLINE, Tally, passed
from recsys.retrieval.rerank.windows import Window, check_window, sliding_windows

__all__ = ["FirstReranker"]


class FirstReranker(PromptedReranker):
    """Orders windows from the tail of the list to its head by the likelihood of each label as the answer's first.

    Nothing is generated: one pass over the prompt orders a window. A list of one window has the log-probabilities as
    scores. Labels are the letters A, B, …, one token each after the prompt's ``prefill``; its
    prompt has the placeholder ``candidates``.
    """

    name = "first"
    default_prompt = "first"
    needed = frozenset({"candidates"})

    def __init__(
        self,
        lm: LanguageModel,
        *,
        window: int = 20,
        step: int = 10,
        prompt: str | Path | Prompt | None = None,
        history_items: int | None = None,
        item_chars: int | None = None,
    ) -> None:
        """
        Args:
            window: candidates of one question, at most 26.
            step: how far the next window is moved towards the head.
            prompt, history_items, item_chars: as :class:`PromptedReranker` says.
        """
        super().__init__(lm, prompt=prompt, history_items=history_items, item_chars=item_chars)
        self.window, self.step = check_window(window, step, len(LETTERS))

    def question(self, request: RerankRequest, places: Window) -> Chat:
        """What is asked about a window; its candidates' labels are ``labels(len(places), letters=True)``."""
        return self.chat(request, candidates=self.lines(request, places, labels(len(places), letters=True)))

    def questions(self, request: RerankRequest) -> list[Chat]:
        """The window at the tail."""
        count = len(request.candidates)
        return [self.question(request, tuple(range(max(0, count - self.window), count)))] if count > 1 else []

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; the requests' windows of the same turn are one batch."""
        tallies = [Tally() for _ in requests]
        scores: list[list[float] | None] = [None for _ in requests]
        counts = [len(request.candidates) for request in requests]
        step = in_step([sliding_windows(count, self.window, self.step) for count in counts])
        try:
            asked = next(step)
            while True:
                told = await self._scores(requests, asked, tallies, deadline)
                for (at, places), values in zip(asked, told, strict=True):
                    if len(places) == counts[at]:
                        scores[at] = values
                orders: list[Sequence[int]] = [
                    order_of_scores(values or [0.0] * len(places))
                    for (_, places), values in zip(asked, told, strict=True)
                ]
                asked = step.send(orders)
        except StopIteration as done:
            whole: list[list[int]] = done.value
        parts = zip(requests, whole, scores, tallies, strict=True)
        return [tally.result(request, places, values) for request, places, values, tally in parts]

    async def _scores(
        self,
        requests: Sequence[RerankRequest],
        asked: Sequence[tuple[int, Window]],
        tallies: Sequence[Tally],
        deadline: float | None,
    ) -> list[list[float] | None]:
        """Scores of the windows' candidates; None where there is no answer."""
        if passed(deadline):
            for at, _ in asked:
                tallies[at].fail(DEADLINE)
            return [None] * len(asked)
        answers = await self.lm.choose(
            [self.question(requests[at], places) for at, places in asked],
            [labels(len(places), letters=True) for _, places in asked],
            prefill=self.prompt.prefill,
            deadline=deadline,
        )
        told = zip(asked, answers, strict=True)
        return [_finite(answer, tallies[at]) if tallies[at].add(answer) else None for (at, _), answer in told]


def _finite(answer: Choice, tally: Tally) -> list[float] | None:
    """Log-probabilities; labels that a server left out come last, all alike, and are counted as missing."""
    given = [value for value in answer.log_probs if math.isfinite(value)]
    if not given:
        tally.faults += Faults(malformed=1)
        return None
    tally.faults += Faults(missing=len(answer.log_probs) - len(given))
    return [value if math.isfinite(value) else min(given) - 1.0 for value in answer.log_probs]
