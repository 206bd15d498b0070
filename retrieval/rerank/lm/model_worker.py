"""The thread in which a model computes, for all who ask it.

Suffixes: B = rows computed together, V = vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from recsys.errors import shown
from recsys.retrieval.rerank.lm.decoding import Decoding
from recsys.retrieval.rerank.lm.kept_states import KeptStates
from recsys.retrieval.rerank.lm.prefix_plan import PlannedRun, plan_runs
from recsys.retrieval.rerank.lm.prefix_store import PrefixStore
from recsys.retrieval.rerank.lm.question import Job, Question
from recsys.retrieval.rerank.lm.run_pass import compute_runs

__all__ = ["ModelWorker"]

Run = PlannedRun[Question]

_PAST_FACTOR = 16
"""Slots of past and new tokens of a batch, as a multiple of its new tokens: bounds the memory of keys and values."""


class _NobodyWaits(Exception):
    """A pass was given up in the middle."""


class ModelWorker:
    """Computes questions of all callers in batches: prompts first, newest first, then answers token by token.

    Prompts that arrive together share what they have in common. Everything runs in one thread, which exists only while
    the worker does.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, stop_ids: frozenset[int], batch_tokens: int, store: PrefixStore | None
    ) -> None:
        """
        Args:
            model: of transformers.
            tokenizer: its own, for the text of answers.
            stop_ids: tokens that end an answer.
            batch_tokens: most new tokens of a pass, padding included.
            store: keys and values of earlier prompts; None = nothing is shared.
        """
        self._model, self._tokenizer = model, tokenizer
        self._stop_ids, self._batch_tokens, self._store = stop_ids, batch_tokens, store
        self._lock = threading.Lock()
        self._arrived: list[Job] = []
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="language-model")
        self._stack: list[Run] = []
        self._later: deque[Question] = deque()
        """Answers in words that wait for room."""
        self._prefilled: list[tuple[Question, list[KeptStates]]] = []
        self._decoding = Decoding(model, self._take)
        self.computed_tokens = 0
        """Prompt tokens that went through the model so far."""

    def submit(self, job: Job) -> None:
        """Start to answer; the job's future tells when it is done."""
        with self._lock:
            self._arrived.append(job)
            if self._busy:
                return
            self._busy = True
        self._thread.submit(self._work)

    def forget(self) -> None:
        """Drop what the store keeps, in the worker's thread, between two rounds of work."""
        if self._store is not None:
            self._thread.submit(self._store.clear).result()

    def _work(self) -> None:
        jobs: list[Job] = []
        try:
            with torch.inference_mode():
                while True:
                    with self._lock:
                        new, self._arrived = self._arrived, []
                        if not (new or self._stack or self._later or self._prefilled or self._decoding.questions):
                            self._busy = False
                            return
                    jobs = [job for job in jobs if not job.future.done()] + new
                    try:
                        self._tick([question for job in new for question in job.questions])
                    except (IndexError, RuntimeError) as error:  # torch's own: no such token, too little memory, …
                        reason = shown(" ".join(str(error).split()))
                        self._give_up(jobs, f"computing failed: {reason}; a smaller batch_tokens takes less memory")
        except BaseException as error:
            with self._lock:
                new, self._arrived, self._busy = self._arrived, [], False
            self._give_up([], "")
            for job in jobs + new:
                if not job.future.done():
                    job.future.set_exception(error)
            raise

    def _give_up(self, jobs: list[Job], why: str) -> None:
        self._stack, self._prefilled = [], []
        self._later.clear()
        self._decoding = Decoding(self._model, self._take)
        if self._store is not None:
            self._store.clear()
        for job in jobs:
            for question in job.questions:
                question.end("error", why)

    def _tick(self, arrived: list[Question]) -> None:
        self._later += [question for question in arrived if question.options is None]
        planned = [question for question in arrived if question.options is not None] + self._admitted()
        runs = plan_runs(
            [(question.prompt, question) for question in planned], self._store, longest_run=self._batch_tokens
        )
        self._stack += sorted(runs, key=len)
        if self._stack:
            self._prefill()
        if self._prefilled and (not self._stack or len(self._prefilled) >= len(self._decoding.questions)):
            self._decoding.join(self._prefilled)
            self._prefilled = []
        if self._decoding.questions:
            start = time.monotonic()
            asked = list(self._decoding.questions)
            self._decoding.step()
            for question in asked:
                question.seconds += (time.monotonic() - start) / len(asked)

    def _admitted(self) -> list[Question]:
        """Answers that there is room to begin, in order of arrival."""
        if not self._later:
            return []
        running = [*self._decoding.questions, *(question for question, _ in self._prefilled)]
        running += [question for run in self._stack for question in run.questions if question.options is None]
        used = sum(len(question.prompt) + question.max_tokens for question in set(running))
        admitted: list[Question] = []
        while self._later:
            used += len(self._later[0].prompt) + self._later[0].max_tokens
            if (running or admitted) and used > _PAST_FACTOR * self._batch_tokens:
                break
            admitted.append(self._later.popleft())
        return admitted

    def _next_batch(self) -> list[Run]:
        """Runs from the top of the stack, alike in length; those that nobody waits for are dropped."""
        batch: list[Run] = []
        longest = shortest = widest = 0
        while self._stack:
            run = self._stack[-1]
            if not any(question.alive for question in run.questions):
                for question in run.questions:
                    question.end("deadline")
                self._stack.pop()
                continue
            if batch:
                longest_then, shortest_then = max(longest, len(run)), min(shortest, len(run))
                widest_then = max(widest, len(run.tokens))
                if (
                    (len(batch) + 1) * longest_then > self._batch_tokens
                    or (len(batch) + 1) * widest_then > _PAST_FACTOR * self._batch_tokens
                    or longest_then > 2 * shortest_then + 16
                ):
                    break
                longest, shortest, widest = longest_then, shortest_then, widest_then
            else:
                longest, shortest, widest = len(run), len(run), len(run.tokens)
            batch.append(self._stack.pop())
        return batch

    def _prefill(self) -> None:
        batch = self._next_batch()
        if not batch:
            return

        def check() -> None:
            if not any(question.alive for run in batch for question in run.questions):
                raise _NobodyWaits

        start = time.monotonic()
        try:
            logits_BV, states = compute_runs(self._model, batch, check)
        except _NobodyWaits:
            for question in (question for run in batch for question in run.questions):
                question.end("deadline")
            return
        children: list[Run] = []
        log_prob_BV = logits_BV.float().log_softmax(-1)
        for row, run in enumerate(batch):
            self.computed_tokens += len(run)
            waiting = [question for question in run.questions if question.alive] or run.questions
            waiting[0].computed += len(run)
            assert run.past is not None
            if self._store is not None:
                self._store.add(run.tokens, states[row])
            whole: list[KeptStates] = []
            if run.children or any(question.options is None for question in run.ending):
                whole = [KeptStates.joined([*run.past, states[row]])]  # without the rest of the batch's memory
            for child in run.children:
                child.past = whole
            children += run.children
            for question in run.ending:
                if question.options is None:
                    self._take(question, int(logits_BV[row].argmax()))
                    self._prefilled.append((question, whole))
                else:
                    question.log_probs = tuple(log_prob_BV[row, question.options].tolist())
        seconds = (time.monotonic() - start) / len(batch)
        for run in batch:
            for question in run.questions:
                question.seconds += seconds / len(run.questions)
            for question in run.ending:
                if question.options is not None:
                    question.end("stop")
        self._stack += sorted(children, key=len)

    def _take(self, question: Question, token: int) -> None:
        """Add a token to an answer."""
        if question.finish is not None:
            return
        if token in self._stop_ids:
            question.end("stop")
            return
        question.tokens.append(token)
        text = self._tokenizer.decode(question.tokens, skip_special_tokens=True)
        ends = [text.find(stop) for stop in question.stop if stop in text]
        question.text = text[: min(ends)] if ends else text
        if ends:
            question.end("stop")
        elif len(question.tokens) >= question.max_tokens:
            question.end("length")
