"""Which of a few words a model would say, by likelihood, or by what it says where a server has no likelihoods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation, LanguageModel
from recsys.retrieval.rerank.tally import passed

__all__ = ["WordChoice"]

_ANSWER_TOKENS = 8


class WordChoice:
    """Asks one model for one of the same words, many times. For one batch of requests: make a new one for the next."""

    def __init__(self, lm: LanguageModel, words: Sequence[str], prefill: str, deadline: float | None) -> None:
        """
        Args:
            words: one token each after ``prefill``.
            deadline: a reading of :func:`time.monotonic`.
        """
        self._lm = lm
        self._words = tuple(words)
        self._prefill = prefill
        self._deadline = deadline
        self.spoken = False
        """Whether words are generated, because the model chose none and yet answers."""

    async def ask(self, chats: Sequence[Chat]) -> list[Choice]:
        """Log-probabilities of the words for each chat.

        Where words are generated, the one that was said has 0 and the others -inf; all have -inf where it is none.
        """
        if not chats:
            return []
        if self.spoken:
            return await self._say(chats)
        choices = await self._lm.choose(
            chats, [self._words] * len(chats), prefill=self._prefill, deadline=self._deadline
        )
        if any(choice.error is None for choice in choices) or passed(self._deadline):
            return choices
        # None of them: a server that offers no log-probabilities, or one that is down. One question tells.
        first = (await self._say(chats[:1]))[0]
        if first.error is not None:
            return choices
        self.spoken = True
        said = [first, *(await self._say(chats[1:]) if len(chats) > 1 else [])]
        return [replace(word, usage=choice.usage + word.usage) for choice, word in zip(choices, said, strict=True)]

    async def _say(self, chats: Sequence[Chat]) -> list[Choice]:
        answers = await self._lm.generate(
            chats, max_tokens=_ANSWER_TOKENS, prefill=self._prefill, deadline=self._deadline
        )
        return [self._read(answer) for answer in answers]

    def _read(self, answer: Generation) -> Choice:
        if answer.finish in ("error", "deadline"):
            error = answer.error or ("the deadline passed" if answer.finish == "deadline" else "the answer broke off")
            return Choice(log_probs=(), usage=answer.usage, error=error)
        said = answer.text.strip(" \t\r\n'\"*`_.([").casefold()
        log_probs = [
            0.0
            if said.startswith(word.strip().casefold()) and not said[len(word.strip()) :][:1].isalnum()
            else -math.inf
            for word in self._words
        ]
        return Choice(log_probs=tuple(log_probs), usage=answer.usage)
