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
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["enough_by_model"]


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
    chars, question_chars = words.option("passage_chars", 400), words.option("question_chars", 500)

    def of(question: str, passages: Sequence[Passage]) -> Reward:
        asked = as_data(question, question_chars)

        def reward(orders: Sequence[tuple[int, ...]]) -> list[float]:
            chats = [
                words.render(
                    passages="\n".join(numbered([passages[number] for number in order], chars)), question=asked
                )
                for order in orders
            ]
            choices = run(lm.choose(chats, [answers] * len(chats), prefill=words.prefill))
            return [_share(choice.log_probs) if choice.error is None else 0.0 for choice in choices]

        return reward

    return of


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
