"""The whole list in one question, whose order, or whose best candidates, a model writes down.

Full ranking as in "Sliding Windows Are Not the End" (arXiv 2412.14574): one question instead of many windows, and with
``top`` an answer of the best labels alone. It asks for a model with a long context, and gains from training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys.retrieval.rerank.item_lines import LETTERS, item_line, labels
from recsys.retrieval.rerank.lm.protocol import Chat, LanguageModel
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.prompted import PromptedReranker, at_least
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import RerankResult
from recsys.retrieval.rerank.tally import DEADLINE, Tally, passed
from recsys.retrieval.rerank.written_order import answer_tokens, example_answer, written

__all__ = ["FullListReranker"]

_SPARE_TOKENS = 64
"""For the chat template's own tokens, which are not counted with the texts."""


class FullListReranker(PromptedReranker):
    """Orders a list by one generated answer.

    Candidates that do not fit into the model's context keep their earlier order behind the others, and the result says
    so. Its prompt has the placeholder ``candidates`` and may have ``count``, ``top`` (how many labels are asked for)
    and ``example`` (of an answer).
    """

    name = "full-list"
    default_prompt = "full_list"
    needed = frozenset({"candidates"})
    offered = frozenset({"count", "example", "top"})

    def __init__(
        self,
        lm: LanguageModel,
        *,
        top: int | None = None,
        letters: bool = False,
        prompt: str | Path | Prompt | None = None,
        history_items: int | None = None,
        item_chars: int | None = None,
    ) -> None:
        """
        Args:
            top: how many labels are asked for; those behind keep their earlier order. None = all.
            letters: labels A, B, … for lists of at most 26; longer ones have numbers anyway.
            prompt, history_items, item_chars: as :class:`PromptedReranker` says.
        """
        super().__init__(lm, prompt=prompt, history_items=history_items, item_chars=item_chars)
        self.top = None if top is None else at_least(1, "top", top, 1)
        self.letters = letters

    def question(self, request: RerankRequest, count: int | None = None) -> Chat:
        """What is asked about the first ``count`` candidates, or about all."""
        names = self.names(len(request.candidates) if count is None else count)
        lines = self.lines(request, range(len(names)), names)
        example = example_answer(names)
        return self.chat(request, candidates=lines, count=len(names), top=self._asked(len(names)), example=example)

    def questions(self, request: RerankRequest) -> list[Chat]:
        """The whole list, as far as it fits."""
        count = self._fitting(request)
        return [self.question(request, count)] if count > 1 else []

    def names(self, count: int) -> tuple[str, ...]:
        """Labels of so many candidates."""
        return labels(count, letters=self.letters and count <= len(LETTERS))

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; all requests are one batch."""
        tallies = [Tally() for _ in requests]
        orders: list[Sequence[int]] = [range(len(request.candidates)) for request in requests]
        counts = {at: count for at, request in enumerate(requests) if (count := self._fitting(request)) > 1}
        if counts and not passed(deadline):
            answers = await self.lm.generate(
                [self.question(requests[at], count) for at, count in counts.items()],
                max_tokens=max(self._answer_tokens(count) for count in counts.values()),
                stop=("\n",),
                prefill=self.prompt.prefill,
                deadline=deadline,
            )
            for (at, count), answer in zip(counts.items(), answers, strict=True):
                whole = len(orders[at])
                best = written(answer, self.prompt.prefill, self.names(count), self._asked(count), tallies[at])
                orders[at] = [*best, *range(count, whole)]
        elif counts:
            for at in counts:
                tallies[at].fail(DEADLINE)
        for at, request in enumerate(requests):
            whole = len(request.candidates)
            if at in counts and counts[at] < whole:
                tallies[at].note(f"{counts[at]} of {whole} candidates fit into the model's context")
            elif at not in counts and whole > 1:
                tallies[at].fail(f"the model's context of {self.lm.context_tokens} tokens holds no two candidates")
        parts = zip(requests, orders, tallies, strict=True)
        return [tally.result(request, places) for request, places, tally in parts]

    def _asked(self, count: int) -> int:
        return count if self.top is None else min(self.top, count)

    def _answer_tokens(self, count: int) -> int:
        """Of an answer with the longest labels."""
        return answer_tokens(self.lm, self.names(count)[-self._asked(count) :])

    def _fitting(self, request: RerankRequest) -> int:
        """How many candidates of the head of the list the context holds, with the answer about them."""
        count = len(request.candidates)
        if count < 2:
            return 0
        names = self.names(count)
        whole = self.question(request, 1)
        texts = [message.text for message in whole]
        texts += [
            f"\n[{name}] {item_line(item, self.item_chars)}"
            for name, item in zip(names, request.candidates, strict=True)
        ]
        tokens = self.lm.count_tokens(texts)
        used = sum(tokens[: len(whole)]) + self._answer_tokens(count) + _SPARE_TOKENS
        for at, more in enumerate(tokens[len(whole) :]):
            used += more
            if used > self.lm.context_tokens:
                return at
        return count
