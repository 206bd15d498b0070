"""A window of candidates at a time, whose order a model writes down (RankGPT, arXiv 2304.09542)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys.retrieval.rerank.in_step import in_step
from recsys.retrieval.rerank.item_lines import labels
from recsys.retrieval.rerank.lm.protocol import Chat, LanguageModel
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.prompted import PromptedReranker
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import RerankResult
from recsys.retrieval.rerank.tally import DEADLINE, Tally, passed
from recsys.retrieval.rerank.windows import Window, check_window, sliding_windows
from recsys.retrieval.rerank.written_order import answer_tokens, example_answer, written

__all__ = ["ListwiseReranker"]


class ListwiseReranker(PromptedReranker):
    """Orders windows from the tail of the list to its head, each by a generated answer such as ``[3] > [1] > [2]``.

    A label that an answer leaves out keeps its earlier order behind those that it holds. Its prompt has the
    placeholder ``candidates`` and may have ``count`` and ``example`` (of an answer).
    """

    name = "listwise"
    default_prompt = "listwise"
    needed = frozenset({"candidates"})
    offered = frozenset({"count", "example"})

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
            window: candidates of one question.
            step: how far the next window is moved towards the head.
            prompt, history_items, item_chars: as :class:`PromptedReranker` says.
        """
        super().__init__(lm, prompt=prompt, history_items=history_items, item_chars=item_chars)
        self.window, self.step = check_window(window, step, 1000)

    def question(self, request: RerankRequest, places: Window) -> Chat:
        """What is asked about a window."""
        names = labels(len(places), letters=False)
        lines = self.lines(request, places, names)
        return self.chat(request, candidates=lines, count=len(places), example=example_answer(names))

    def questions(self, request: RerankRequest) -> list[Chat]:
        """The window at the tail."""
        count = len(request.candidates)
        return [self.question(request, tuple(range(max(0, count - self.window), count)))] if count > 1 else []

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; the requests' windows of the same turn are one batch."""
        tallies = [Tally() for _ in requests]
        counts = [len(request.candidates) for request in requests]
        step = in_step([sliding_windows(count, self.window, self.step) for count in counts])
        try:
            asked = next(step)
            while True:
                asked = step.send(await self._order(requests, asked, tallies, deadline))
        except StopIteration as done:
            orders: list[list[int]] = done.value
        return [tally.result(request, places) for request, places, tally in zip(requests, orders, tallies, strict=True)]

    async def _order(
        self,
        requests: Sequence[RerankRequest],
        asked: Sequence[tuple[int, Window]],
        tallies: Sequence[Tally],
        deadline: float | None,
    ) -> list[Sequence[int]]:
        """Orders of the windows; the earlier one where there is no answer."""
        if passed(deadline):
            for at, _ in asked:
                tallies[at].fail(DEADLINE)
            return [range(len(places)) for _, places in asked]
        longest = labels(max(len(places) for _, places in asked), letters=False)
        answers = await self.lm.generate(
            [self.question(requests[at], places) for at, places in asked],
            max_tokens=answer_tokens(self.lm, longest),
            stop=("\n",),
            prefill=self.prompt.prefill,
            deadline=deadline,
        )
        orders: list[Sequence[int]] = []
        for (at, places), answer in zip(asked, answers, strict=True):
            names = labels(len(places), letters=False)
            orders.append(written(answer, self.prompt.prefill, names, len(names), tallies[at]))
        return orders
