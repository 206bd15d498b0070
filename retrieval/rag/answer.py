"""Answers of a language model from passages, with citations that are checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from recsys.errors import InputError, shown
from recsys.retrieval.rag.chunk_search import Reward, SearchSettings, of_sets, search_chunks
from recsys.retrieval.rag.citations import MIN_OVERLAP, CheckedAnswer, Entails, check_answer, judged_answer
from recsys.retrieval.rag.model_reward import ModelReward
from recsys.retrieval.rag.passage import FoundPassage, Passage, relevance
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.placement import strongest_at_both_ends
from recsys.retrieval.rag.prompt_lines import load_prompt, numbered, shown_answer
from recsys.retrieval.rag.selection import Selection, greedy, utility_of
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.background_loop import run
from recsys.retrieval.rerank.lm.protocol import Chat, Generation, LanguageModel
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["SELECTIONS", "Answer", "Answerer", "GivenPassages"]

SELECTIONS = ("greedy", "tree", "top")
Status = Literal["answered", "cut", "nothing found", "failed"]
_TEMPLATE_TOKENS = 24
"""What a chat template adds to a prompt, at most."""
_QUOTED_CHARS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and what it stands on."""

    question: str
    text: str
    """Never empty: where the model said nothing, a sentence that says so, and what was found."""
    status: Status
    """``answered``; ``cut`` where the answer ends early; ``nothing found`` where the model was not asked; ``failed``
    where it gave no answer."""
    passages: tuple[Passage, ...]
    """Those that the model was given; number n of a citation is ``passages[n - 1]``."""
    citations: CheckedAnswer
    usage: Usage = field(default_factory=Usage)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """From the question to the answer, search included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPassages:
    """What goes into a prompt."""

    given: tuple[Passage, ...]
    """In the order of the prompt."""
    notes: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    """Of a language model that valued lists of passages; part of the answer's."""


class Answerer:
    """Finds passages, chooses some under a budget and has a language model answer from them. Any thread may ask."""

    def __init__(
        self,
        lm: LanguageModel,
        store: PassageStore,
        *,
        prompt: str | Path | Prompt = "answer",
        budget_tokens: int = 1000,
        k: int = 20,
        selection: str = "greedy",
        reward: Callable[[str, Sequence[Passage]], Reward] | None = None,
        search: SearchSettings | None = None,
        entails: Entails | None = None,
        min_overlap: float = MIN_OVERLAP,
        max_tokens: int = 200,
    ) -> None:
        """
        Args:
            lm: writes the answers.
            store: where passages come from.
            prompt: name or path of a prompt file with the places ``passages``, ``question`` and ``sentences``.
            budget_tokens: of all passages of a prompt, counted by the model.
            k: passages found, of which some are chosen.
            selection: ``greedy`` and ``tree`` weigh relevance, words covered, redundancy and cost; ``top`` takes the
                best found as long as they fit.
            reward: of ``tree``, made of the question and the passages found, such as
                :func:`~recsys.retrieval.rag.chunk_search.joined_texts` with a cross-encoder; None = the utility of
                :mod:`recsys.retrieval.rag.selection`.
            search: how long ``tree`` looks.
            entails: judges sentences instead of the overlap of words; see
                :class:`recsys.retrieval.rag.nli.EntailmentModel`.
            min_overlap: see :func:`recsys.retrieval.rag.citations.check_answer`.
            max_tokens: of an answer.

        Raises:
            InputError: a setting that cannot be meant, or no such prompt.
        """
        for name, value in (("budget_tokens", budget_tokens), ("k", k), ("max_tokens", max_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {shown(value)}")
        if selection not in SELECTIONS:
            raise InputError(f"there is no selection {shown(selection)}; choose one of {', '.join(SELECTIONS)}")
        if reward is not None and selection != "tree":
            raise InputError("reward belongs to selection 'tree'")
        check_answer("", [], min_overlap=min_overlap)
        self.lm, self.store, self.prompt = lm, store, load_prompt(prompt)
        self.budget_tokens, self.k, self.selection, self.max_tokens = budget_tokens, k, selection, max_tokens
        self.reward, self.search_settings = reward, search
        self.entails, self.min_overlap = entails, min_overlap
        self._passage_chars = self.prompt.option("passage_chars", 800)
        self._question_chars = self.prompt.option("question_chars", 500)

    def answer(self, question: str, **settings: Any) -> Answer:
        """As :meth:`answer_async`, for callers without an event loop (within one it blocks the loop)."""
        return run(self.answer_async(question, **settings))

    async def answer_async(
        self,
        question: str,
        *,
        item_ids: Iterable[Any] | None = None,
        sources: Iterable[str] | None = None,
        passages: Sequence[Passage] | None = None,
        budget_tokens: int | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Answer one question. Whatever the model does, there is an answer, which says what went wrong.

        Args:
            question: any text; it is data to the model, as the passages are.
            item_ids, sources: see :meth:`PassageStore.search_batch`.
            passages: answer from these and search nothing; still chosen from under the budget.
            budget_tokens: None = the answerer's.
            deadline: a reading of :func:`time.monotonic`; soon after it an answer is returned.
        """
        start = time.monotonic()
        if not isinstance(question, str):
            raise InputError(f"a question must be text, got {shown(question)}")
        if passages is None:
            found = await asyncio.to_thread(self.store.search, question, self.k, item_ids=item_ids, sources=sources)
        else:
            found = [FoundPassage(passage=passage, score=1.0) for passage in passages]
        if not found:
            text = "Nothing was found about this question."
            return self._told(question, text, "nothing found", (), start, "no passage was found")
        choice = await asyncio.to_thread(self.choose, question, found, budget_tokens, deadline)
        if not choice.given:
            text = "Nothing that was found fits the budget of the prompt."
            return self._told(question, text, "nothing found", (), start, *choice.notes, usage=choice.usage)
        answer = await self.answer_from(question, choice.given, deadline=deadline)
        return replace(
            answer, notes=(*choice.notes, *answer.notes), usage=choice.usage + answer.usage,
            seconds=time.monotonic() - start,
        )  # fmt: skip

    async def answer_from(self, question: str, given: Sequence[Passage], *, deadline: float | None = None) -> Answer:
        """An answer from passages that :meth:`choose` gave, as they stand: none is left out or moved."""
        said = await self._generated(self.chat(question, given), deadline)
        return await asyncio.to_thread(self.checked, question, given, said)

    def chat(self, question: str, given: Sequence[Passage]) -> Chat:
        """What is put to the model, without asking: a dry view."""
        return self.prompt.render(
            passages="\n".join(numbered(given, self._passage_chars)),
            question=as_data(question, self._question_chars),
            sentences=self.prompt.option("sentences", 4),
        )

    def choose(
        self,
        question: str,
        found: Sequence[FoundPassage],
        budget_tokens: int | None = None,
        deadline: float | None = None,
    ) -> GivenPassages:
        """Passages for the prompt, the strongest at both ends, notes, and what the choice took."""
        lines = numbered([hit.passage for hit in found], self._passage_chars)
        tokens = [count + 1 for count in self.lm.count_tokens(lines)]
        bare = sum(self.lm.count_tokens([message.text for message in self.chat(question, [])]))
        room = self.lm.context_tokens - self.max_tokens - bare - _TEMPLATE_TOKENS
        wanted = self.budget_tokens if budget_tokens is None else budget_tokens
        budget = min(wanted, room)
        notes = [f"the model has room for {max(0, room)} tokens of passages"] if room < wanted else []
        selected, usage = self._selected(question, found, tokens, budget, deadline)
        if not selected.complete:
            notes.append("the deadline ended the choice of passages")
        left_out = len(found) - len(selected.chosen)
        if left_out:
            notes.append(f"{len(selected.chosen)} of {len(found)} passages found were given, {selected.tokens} tokens")
        strongest = sorted(selected.chosen)  # numbers are places in the order of the search
        given = tuple(found[place].passage for place in strongest_at_both_ends(strongest))
        return GivenPassages(given=given, notes=tuple(notes), usage=usage)

    def checked(self, question: str, given: Sequence[Passage], said: Generation) -> Answer:
        """The answer that a generation amounts to."""
        text, notes, status = shown_answer(said.text), list[str](), "answered"
        if said.finish != "stop":
            reason = said.error or {"length": f"{self.max_tokens} tokens", "deadline": "the deadline"}.get(
                said.finish, "an error"
            )
            status = "cut" if text else "failed"
            notes.append(f"the answer ends early: {reason}" if text else f"the model gave no answer: {reason}")
        elif not text:
            status = "failed"
            notes.append("the model gave an empty answer")
        if status == "failed":
            return self._told(question, _found_instead(given), "failed", given, None, *notes, usage=said.usage)
        checked, more = judged_answer(text, given, min_overlap=self.min_overlap, entails=self.entails)
        notes += more
        if checked.unknown_citations:
            numbers = ", ".join(map(str, checked.unknown_citations[:10]))
            notes.append(f"the answer cites passages that do not exist: {numbers}")
        if checked.unsupported:
            notes.append(
                f"{len(checked.unsupported)} of {len(checked.sentences)} sentences are not supported by what they cite"
            )
        return Answer(
            question=question,
            text=text,
            status="cut" if status == "cut" else "answered",
            passages=tuple(given),
            citations=checked,
            usage=said.usage,
            notes=tuple(notes),
        )

    async def _generated(self, chat: Chat, deadline: float | None) -> Generation:
        try:
            (said,) = await self.lm.generate(
                [chat], max_tokens=self.max_tokens, prefill=self.prompt.prefill, deadline=deadline
            )
        except InputError as error:  # the prompt is ours, so that its faults are not the caller's
            return Generation(text="", finish="error", error=str(error))
        return said

    def _selected(
        self,
        question: str,
        found: Sequence[FoundPassage],
        tokens: Sequence[int],
        budget_tokens: int,
        deadline: float | None,
    ) -> tuple[Selection, Usage]:
        if self.selection == "top":
            return _first_that_fit(tokens, budget_tokens), Usage()
        passages = [hit.passage for hit in found]
        value = utility_of(
            question, [passage.text for passage in passages], relevance(found), self.store.similarity(passages)
        )
        start = greedy(value, tokens, budget_tokens)
        if self.selection == "greedy":
            return start, Usage()
        settings = self.search_settings or SearchSettings()
        if self.reward is None:
            return search_chunks(
                of_sets(value), tokens, budget_tokens, settings=settings, start=start.chosen, any_order=True,
                deadline=deadline,
            ), Usage()  # fmt: skip
        reward = self.reward(question, passages)
        if isinstance(reward, ModelReward):
            reward.deadline = deadline
        best = search_chunks(reward, tokens, budget_tokens, settings=settings, start=start.chosen, deadline=deadline)
        usage = reward.usage if isinstance(reward, ModelReward) else Usage()
        # A model that fails, or is late, values nothing.
        return (best if best.chosen else replace(start, complete=best.complete)), usage

    def _told(
        self, question: str, text: str, status: Status, given: Sequence[Passage], start: float | None, *notes: str,
        usage: Usage | None = None,
    ) -> Answer:  # fmt: skip
        return Answer(
            question=question,
            text=text,
            status=status,
            passages=tuple(given),
            citations=check_answer(text, given, min_overlap=self.min_overlap),
            usage=usage or Usage(),
            notes=notes,
            seconds=0.0 if start is None else time.monotonic() - start,
        )


def _first_that_fit(tokens: Sequence[int], budget_tokens: int) -> Selection:
    chosen: list[int] = []
    spent = 0
    for number, cost in enumerate(tokens):
        if spent + cost <= budget_tokens:
            chosen.append(number)
            spent += cost
    return Selection(chosen=tuple(chosen), value=0.0, tokens=spent, evaluations=0)


def _found_instead(given: Sequence[Passage]) -> str:
    """What to say where the model said nothing: the beginnings of the passages, cited."""
    lines = [f"{as_data(passage.text, _QUOTED_CHARS)} [{number}]" for number, passage in enumerate(given, start=1)]
    return "\n".join(["There is no answer of the model. These passages were found:", *lines])
