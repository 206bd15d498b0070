"""Questions that one search does not answer: look something up, ask again, at most five times.

Iterative demonstration-based retrieval of "Inference Scaling for Long-Context Retrieval Augmented Generation",
arXiv 2410.04343, without demonstrations: in every round the model answers or names what to look up next, whose
passages join those of the rounds before.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from recsys.errors import InputError, shown
from recsys.retrieval.rag.answer import Answer, Answerer
from recsys.retrieval.rag.passage import FoundPassage, Passage
from recsys.retrieval.rag.prompt_lines import load_prompt, numbered, shown_answer
from recsys.retrieval.rag.words import words
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.background_loop import run
from recsys.retrieval.rerank.lm.protocol import Generation
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["MOST_ROUNDS", "AnswerInRounds", "Round", "RoundAnswerer", "read_round"]

MOST_ROUNDS = 5
_MOST_QUESTION = 300
"""Characters of a question that the model wants to look up."""

_TEMPLATE_TOKENS = 24
"""What a chat template adds to a prompt, at most."""

Ended = Literal[
    "answered", "rounds", "budget", "deadline", "repeated question", "unreadable", "failed", "nothing found"
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One search and what the model made of it."""

    question: str
    """What was searched for: the question itself, then what the model wanted to look up."""
    found: tuple[Passage, ...]
    """Passages that were not known before."""
    said: str
    """What the model wrote."""
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerInRounds:
    """The answer and the way to it."""

    answer: Answer
    """With the usage of all rounds."""
    rounds: tuple[Round, ...]
    ended: Ended
    """Why there was no further round; in any case but ``answered`` and ``failed`` the model was then asked to answer
    from what had been found, as far as deadline and budget allowed."""


@dataclass(slots=True)
class _State:
    found: dict[str, FoundPassage] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    @property
    def tokens(self) -> int:
        return self.usage.prompt_tokens + self.usage.generated_tokens


class RoundAnswerer:
    """Answers in rounds; see :meth:`answer_async`."""

    def __init__(
        self, answerer: Answerer, *, prompt: str | Path | Prompt = "round", max_rounds: int = MOST_ROUNDS,
        budget_tokens: int = 6000,
    ) -> None:  # fmt: skip
        """
        Args:
            answerer: searches, chooses passages and writes the last answer.
            prompt: name or path of a prompt file with the places ``passages``, ``question``, ``steps`` and
                ``sentences``.
            max_rounds: from 1 to 5.
            budget_tokens: of prompts and answers of all rounds together; no round begins that may exceed it, nor a
                second one that may leave too few for a last answer. What a reward by a language model takes counts too,
                and alone may exceed it: `SearchSettings` bounds that.

        Raises:
            InputError: a setting that cannot be meant, or no such prompt.
        """
        if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or not 1 <= max_rounds <= MOST_ROUNDS:
            raise InputError(f"max_rounds must be from 1 to {MOST_ROUNDS}, got {shown(max_rounds)}")
        if isinstance(budget_tokens, bool) or not isinstance(budget_tokens, int) or budget_tokens < 1:
            raise InputError(f"budget_tokens must be a positive integer, got {shown(budget_tokens)}")
        self.answerer, self.prompt = answerer, load_prompt(prompt)
        self.max_rounds, self.budget_tokens = max_rounds, budget_tokens
        self._answer_mark = self.prompt.option("answer_mark", "Answer:")
        self._follow_up_mark = self.prompt.option("follow_up_mark", "Follow up:")

    def answer(self, question: str, **settings: Any) -> AnswerInRounds:
        """As :meth:`answer_async`, for callers without an event loop (within one it blocks the loop)."""
        return run(self.answer_async(question, **settings))

    async def answer_async(
        self,
        question: str,
        *,
        item_ids: Iterable[Any] | None = None,
        sources: Iterable[str] | None = None,
        deadline: float | None = None,
    ) -> AnswerInRounds:
        """Answer one question. It ends with an answer, whatever the model does.

        Args:
            question: any text.
            item_ids, sources: of all rounds; see :meth:`PassageStore.search_batch`.
            deadline: a reading of :func:`time.monotonic`.
        """
        start, answerer, state = time.monotonic(), self.answerer, _State()
        only = None if item_ids is None else list(item_ids), None if sources is None else list(sources)
        asked, wanted, looked_up = [_folded(question)], question, list[str]()
        ended: Ended = "rounds"
        for _ in range(self.max_rounds):
            new = await self._search(wanted, only, state)
            if not state.found:
                ended = "nothing found"
                break
            # What was looked up counts as asked for, so that its passages are not left out as beside the point.
            whole = " ".join([question, *looked_up])
            kept_back = self._kept_back(question, looked_up, state)
            budget = self._room(question, looked_up, state, kept_back)
            choice = await asyncio.to_thread(answerer.choose, whole, list(state.found.values()), budget, deadline)
            given = choice.given
            state.usage += choice.usage
            chat = self._chat(question, given, looked_up)
            if not given or self._cost(chat) > self.budget_tokens - state.tokens - kept_back:
                state.rounds.append(Round(question=wanted, found=new, said="", usage=Usage()))
                ended = "budget"
                break
            if deadline is not None and time.monotonic() >= deadline:
                state.rounds.append(Round(question=wanted, found=new, said="", usage=Usage()))
                ended = "deadline"
                break
            said = await self._generated(chat, deadline)
            state.usage += said.usage
            state.rounds.append(Round(question=wanted, found=new, said=said.text, usage=said.usage))
            text, next_question = read_round(said.text, self._answer_mark, self._follow_up_mark)
            if said.finish == "error" and not text:
                return self._done(answerer.checked(question, given, said), state, "failed", start)
            if next_question is None:
                if said.finish == "deadline" and not text:
                    ended = "deadline"
                    break
                if text:
                    answer = await asyncio.to_thread(answerer.checked, question, given, replace(said, text=text))
                    return self._done(answer, state, "answered", start)
                ended = "unreadable"
                break
            if said.finish == "deadline":
                ended = "deadline"
                break
            if _folded(next_question) in asked:
                ended = "repeated question"
                break
            asked.append(_folded(next_question))
            looked_up.append(next_question)
            wanted = next_question
        return self._done(await self._last(question, state, deadline), state, ended, start)

    async def _last(self, question: str, state: _State, deadline: float | None) -> Answer:
        """An answer from all that was found, by the plain prompt."""
        answerer = self.answerer
        if not state.found:
            return await answerer.answer_async(question, passages=[], deadline=deadline)
        whole = " ".join([question, *(one.question for one in state.rounds[1:])])
        left = self.budget_tokens - state.tokens - self._cost(answerer.chat(question, []))
        budget = left if 0 < left < answerer.budget_tokens else None
        choice = await asyncio.to_thread(answerer.choose, whole, list(state.found.values()), budget, deadline)
        given = choice.given
        state.usage += choice.usage
        if not given and budget is None:
            return await answerer.answer_async(question, passages=[], deadline=deadline)
        if not given:  # too little is left for any of them
            given = tuple(hit.passage for hit in list(state.found.values())[:1])
        if self._cost(answerer.chat(question, given)) > self.budget_tokens - state.tokens:
            why = f"of {self.budget_tokens} tokens {state.tokens} are spent, and too few are left"
            nothing = Generation(text="", finish="error", error=why)
            return answerer.checked(question, given, nothing)
        answer = await answerer.answer_from(question, given, deadline=deadline)
        state.usage += answer.usage
        return answer

    def _done(self, answer: Answer, state: _State, ended: Ended, start: float) -> AnswerInRounds:
        notes = answer.notes if ended == "answered" else (*answer.notes, f"rounds ended: {ended}")
        whole = replace(answer, usage=state.usage, notes=notes, seconds=time.monotonic() - start)
        return AnswerInRounds(answer=whole, rounds=tuple(state.rounds), ended=ended)

    async def _search(
        self, wanted: str, only: tuple[list[Any] | None, list[str] | None], state: _State
    ) -> tuple[Passage, ...]:
        hits = await asyncio.to_thread(
            self.answerer.store.search, wanted, self.answerer.k, item_ids=only[0], sources=only[1]
        )
        new = [hit for hit in hits if hit.passage.id not in state.found]
        state.found.update((hit.passage.id, hit) for hit in new)
        return tuple(hit.passage for hit in new)

    def _chat(self, question: str, given: Sequence[Passage], looked_up: Sequence[str]) -> Any:
        steps = [as_data(step, _MOST_QUESTION) for step in looked_up]
        return self.prompt.render(
            passages="\n".join(numbered(given, self.prompt.option("passage_chars", 800))),
            question=as_data(question, self.prompt.option("question_chars", 500)),
            steps=" / ".join(steps),
            sentences=self.prompt.option("sentences", 4),
        )

    def _kept_back(self, question: str, looked_up: Sequence[str], state: _State) -> int:
        """Tokens that a round leaves for a last answer, from one passage; a first round that cannot leaves none."""
        strongest = [hit.passage for hit in list(state.found.values())[:1]]
        last = self._cost(self.answerer.chat(question, strongest))
        smallest = self._cost(self._chat(question, strongest, looked_up))
        return last if state.rounds or smallest + last <= self.budget_tokens - state.tokens else 0

    def _room(self, question: str, looked_up: Sequence[str], state: _State, kept_back: int) -> int:
        """Tokens of passages in a round: the answerer's budget, what its model has room for, or what is left."""
        answerer = self.answerer
        most = min(answerer.lm.context_tokens, self.budget_tokens - state.tokens - kept_back)
        return max(0, min(answerer.budget_tokens, most - self._cost(self._chat(question, [], looked_up))))

    def _cost(self, chat: Any) -> int:
        """Most tokens of prompt and answer."""
        texts = [*(message.text for message in chat), self.prompt.prefill]
        return sum(self.answerer.lm.count_tokens(texts)) + _TEMPLATE_TOKENS + self.answerer.max_tokens

    async def _generated(self, chat: Any, deadline: float | None) -> Generation:
        answerer = self.answerer
        try:
            (said,) = await answerer.lm.generate(
                [chat], max_tokens=answerer.max_tokens, prefill=self.prompt.prefill, deadline=deadline
            )
        except InputError as error:  # the prompt is ours, so that its faults are not the caller's
            return Generation(text="", finish="error", error=str(error))
        return said


def read_round(text: str, answer_mark: str = "Answer:", follow_up_mark: str = "Follow up:") -> tuple[str, str | None]:
    """(answer, question to look up) as the model wrote them; the first mark counts, and without any all is the answer.

    The question is one line of at most 300 characters; the answer is empty, and the question None, where a question
    was announced and there is none.

    >>> read_round("Follow up: Who made it?\\nAnswer: A firm.")
    ('', 'Who made it?')
    >>> read_round("It is red. [1]"), read_round("Follow up: ")
    (('It is red. [1]', None), ('', None))
    """
    clean = shown_answer(text)
    found: list[tuple[int, int, bool]] = []
    for mark, is_question in ((answer_mark, False), (follow_up_mark, True)):
        match = re.search(re.escape(mark.rstrip(":").strip()).replace(r"\ ", r"[\s-]*") + r"\s*:", clean, re.IGNORECASE)
        if match:
            found.append((match.start(), match.end(), is_question))
    if not found:
        return clean, None
    (_, end, is_question), *later = sorted(found)
    part = clean[end : later[0][0]] if later else clean[end:]
    if not is_question:
        return part.strip() or clean[:0], None
    line = next((line.strip() for line in part.splitlines() if line.strip()), "")
    question = line[:_MOST_QUESTION].strip()
    return "", question if words(question) else None


def _folded(question: str) -> tuple[str, ...]:
    return tuple(words(question))
