"""What a list of passages is worth for a question, by a language model: how likely it says that they answer it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from recsys.errors import InputError, shown
from recsys.retrieval.rag.chunk_search import Reward
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.prompt_lines import load_prompt, numbered
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.background_loop import run
from recsys.retrieval.rerank.lm.protocol import LanguageModel
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["ModelReward", "enough_by_model"]


def enough_by_model(
    lm: LanguageModel, *, prompt: str | Path | Prompt = "enough"
) -> Callable[[str, Sequence[Passage]], Reward]:
    """For ``Answerer(…, selection="tree", reward=enough_by_model(lm))``: P(yes) / (P(yes) + P(no)), 0 where the model
    gives no answer. Each list costs one prompt; :class:`~recsys.retrieval.rag.chunk_search.SearchSettings` bounds them.

    Args:
        lm: gives log-probabilities.
        prompt: name or path of a prompt file with the places ``passages`` and ``question``, and the two words to answer
            with as its option ``answers``.

    Raises:
        InputError: no such prompt, or it names no two words.
    """
    words = load_prompt(prompt)
    answers = words.option("answers", ["yes", "no"])
    if len(answers) != 2 or not all(isinstance(answer, str) and answer for answer in answers):
        raise InputError(f"prompt {words.source}: option 'answers' must hold two words, got {shown(answers)}")
    return lambda question, passages: ModelReward(lm, words, answers, question, passages)


class ModelReward:
    """A :data:`~recsys.retrieval.rag.chunk_search.Reward` that knows what it took."""

    def __init__(
        self, lm: LanguageModel, prompt: Prompt, answers: Sequence[str], question: str, passages: Sequence[Passage]
    ) -> None:
        """See :func:`enough_by_model`."""
        self._lm, self._prompt, self._answers = lm, prompt, answers
        self._asked = as_data(question, prompt.option("question_chars", 500))
        self._passages, self._chars = passages, prompt.option("passage_chars", 400)
        self.usage = Usage()
        """Of all lists that were valued so far."""
        self.deadline: float | None = None
        """A reading of :func:`time.monotonic` past which a list is worth nothing."""

    def __call__(self, orders: Sequence[tuple[int, ...]]) -> list[float]:
        chats = [
            self._prompt.render(
                passages="\n".join(numbered([self._passages[number] for number in order], self._chars)),
                question=self._asked,
            )
            for order in orders
        ]
        choices = run(
            self._lm.choose(chats, [self._answers] * len(chats), prefill=self._prompt.prefill, deadline=self.deadline)
        )
        self.usage = sum((choice.usage for choice in choices), self.usage)
        return [_share(choice.log_probs) if choice.error is None else 0.0 for choice in choices]


def _share(log_probs: Sequence[float]) -> float:
    """Of the first of two.

    >>> _share((math.log(0.3), math.log(0.1))), _share((-math.inf, -math.inf))
    (0.75, 0.0)
    """
    top = max(log_probs)
    if top == -math.inf:
        return 0.0
    yes, no = (math.exp(one - top) for one in log_probs)
    return round(yes / (yes + no), 12)
