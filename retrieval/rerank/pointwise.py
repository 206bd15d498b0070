"""Each candidate by itself: how likely a model is to say that the user would choose it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from recsys.retrieval.rerank.item_lines import item_line
from recsys.retrieval.rerank.lm.protocol import Chat, LanguageModel
from recsys.retrieval.rerank.order import order_of_scores
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.prompted import PromptedReranker
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.result import Faults, RerankResult
from recsys.retrieval.rerank.tally import Tally
from recsys.retrieval.rerank.word_choice import WordChoice

__all__ = ["PointwiseReranker"]


class PointwiseReranker(PromptedReranker):
    """Orders by p(yes) / (p(yes) + p(no)).

    The prompt holds the user first and the candidate last (placeholder ``candidate``), so that what is common to a
    user's candidates is computed once by models that reuse prefixes. A candidate without an answer keeps its place,
    and the result then has no scores.
    """

    name = "pointwise"
    default_prompt = "pointwise"
    needed = frozenset({"candidate"})

    def __init__(
        self,
        lm: LanguageModel,
        *,
        prompt: str | Path | Prompt | None = None,
        history_items: int | None = None,
        item_chars: int | None = None,
    ) -> None:
        """As :class:`PromptedReranker` says; the words of yes and no are the prompt's option ``answers``."""
        super().__init__(lm, prompt=prompt, history_items=history_items, item_chars=item_chars)
        self.words = self.answers(("Yes", "No"))

    def questions(self, request: RerankRequest) -> list[Chat]:
        """One for each candidate, in their order."""
        return [self.chat(request, candidate=item_line(item, self.item_chars)) for item in request.candidates]

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says; one batch of all candidates of all requests."""
        chats = [self.questions(request) if len(request.candidates) > 1 else [] for request in requests]
        choice = WordChoice(self.lm, self.words, self.prompt.prefill, deadline)
        answers = iter(await choice.ask([chat for asked in chats for chat in asked]))
        results = []
        for request, asked in zip(requests, chats, strict=True):
            tally = Tally()
            scores: list[float | None] = []
            for _ in asked:
                answer = next(answers)
                score = _share(*answer.log_probs) if tally.add(answer) else None
                if score is None and answer.error is None:
                    tally.faults += Faults(malformed=1)
                scores.append(score)
            if choice.spoken and asked:
                tally.note("no log-probabilities: yes or no only")
            results.append(_result(request, scores, tally))
        return results


def _share(yes: float, no: float) -> float | None:
    """Of yes, from logarithms; None where neither has any, or one is no number.

    >>> _share(-1.0, -1.0), _share(-0.5, -math.inf), _share(-math.inf, -math.inf), _share(-1.0, math.nan)
    (0.5, 1.0, None, None)
    """
    most = max(yes, no)
    if math.isnan(yes) or math.isnan(no) or not math.isfinite(most):
        return None
    share = math.exp(yes - most)
    return share / (share + math.exp(no - most))


def _result(request: RerankRequest, scores: Sequence[float | None], tally: Tally) -> RerankResult:
    if not scores:
        return tally.result(request, range(len(request.ids)))
    known = [place for place, score in enumerate(scores) if score is not None]
    values = [score for score in scores if score is not None]
    places = list(range(len(scores)))
    for place, at in zip(known, order_of_scores(values), strict=True):
        places[place] = known[at]
    return tally.result(request, places, values if len(known) == len(scores) else None)
