"""A local language model whose answers reuse keys and values of numbered lines, wherever in a prompt they stand.

>>> lm = LocalLanguageModel.load("models/SmolLM2")  # doctest: +SKIP
>>> Answerer(ChunkReusingModel(lm), store).answer("Which of these is for a two-year-old?")  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from recsys.errors import InputError
from recsys.retrieval.rag.chunk_reuse import ChunkReuse
from recsys.retrieval.rerank.lm.chat_tokens import ChatTokens
from recsys.retrieval.rerank.lm.local import LocalLanguageModel
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation
from recsys.retrieval.rerank.lm.usage import Prices, Usage

__all__ = ["ChunkReusingModel"]

_LINE = re.compile(r"^(\[\d+\])( .+)$", re.MULTILINE)
"""A number in brackets, which is no part of the chunk, and the chunk."""


class ChunkReusingModel:
    """A :class:`~recsys.retrieval.rerank.lm.protocol.LanguageModel` around a local one.

    Each line ``[n] text`` of a prompt is a chunk: whatever its number and its neighbours, its text brings along what
    was computed of it before. Prompts without such lines, and :meth:`choose`, are left to the local model. Answers
    differ from its own as far as ``alpha`` allows; see :class:`~recsys.retrieval.rag.chunk_reuse.ChunkReuse`.

    Args:
        lm: a local model.
        reuse: of the model of ``lm``; None = one with default settings.
        prices: to count a cost.

    Raises:
        InputError: chunks of a model built like this cannot be reused.
    """

    def __init__(
        self, lm: LocalLanguageModel, reuse: ChunkReuse | None = None, *, prices: Prices | None = None
    ) -> None:
        self.lm = lm
        self.reuse = ChunkReuse(lm.model) if reuse is None else reuse
        self.name = lm.name
        self.context_tokens = min(lm.context_tokens, self.reuse.context_tokens)
        self._prices = prices or Prices()
        self._tokens = ChatTokens(lm.tokenizer, lm.name)
        ends = lm.model.generation_config.eos_token_id
        self._stop_ids = self._tokens.stop_ids | set([ends] if isinstance(ends, int) else ends or [])
        self._one_at_a_time = threading.Lock()

    async def choose(
        self,
        chats: Sequence[Chat],
        options: Sequence[Sequence[str]],
        *,
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Choice]:
        """As the local model does."""
        return await self.lm.choose(chats, options, prefill=prefill, deadline=deadline)

    async def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Generation]:
        """As :class:`LanguageModel` says. One answer after the other; a prompt that is being read is read to its end,
        but nobody waits for it past the deadline."""
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; give at least 1")
        if "" in stop:
            raise InputError("a stop string is empty; leave it out")
        ours = [at for at, chat in enumerate(chats) if any(_LINE.search(message.text) for message in chat)]
        answers: dict[int, Generation] = {}
        so_far: list[str] = [""] * len(chats)

        def answer(at: int) -> Generation:
            def ended(tokens: Sequence[int]) -> bool:
                text = self._text(tokens)
                cut = min((text.find(end) for end in stop if end in text), default=len(text))
                so_far[at] = text[:cut]
                return cut < len(text)

            return self._answer(chats[at], max_tokens, ended, prefill, deadline)

        def work() -> None:
            for at in ours:
                said = answer(at)
                answers[at] = replace(said, text=so_far[at])

        task = asyncio.ensure_future(asyncio.to_thread(work))
        rest = [at for at in range(len(chats)) if at not in set(ours)]
        if rest:
            others = await self.lm.generate(
                [chats[at] for at in rest], max_tokens=max_tokens, stop=stop, prefill=prefill, deadline=deadline
            )
            answers |= dict(zip(rest, others, strict=True))
        await asyncio.wait([task], timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        if task.done():
            task.result()
        return [
            answers.get(at) or Generation(text=so_far[at], finish="deadline", usage=Usage(calls=1))
            for at in range(len(chats))
        ]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the local model does."""
        return self.lm.count_tokens(texts)

    def _answer(
        self,
        chat: Chat,
        max_tokens: int,
        ended: Callable[[Sequence[int]], bool],
        prefill: str,
        deadline: float | None,
    ) -> Generation:
        """An answer whose text only ``ended`` gets to know."""
        start = time.monotonic()
        with self._one_at_a_time:
            if deadline is not None and time.monotonic() > deadline:
                return Generation(text="", finish="deadline", usage=Usage(calls=1))
            prefix, labels, chunks, question = self._cut(chat, prefill)
            prompt = len(prefix) + len(question) + sum(map(len, [*labels, *chunks]))
            room = min(max_tokens, self.context_tokens - prompt)
            if room < 1:
                error = f"the prompt is {prompt} tokens, and {self.name} takes {self.context_tokens - 1}"
                return Generation(text="", finish="error", usage=Usage(calls=1), error=error)
            state = self.reuse.read(prefix, chunks, question, labels=labels, room=room)
            answer = self.reuse.decode(state, max_tokens=room, stop=self._stop_ids, ended=ended, deadline=deadline)
        counts, generated = answer.counts, len(answer.tokens)
        usage = Usage(
            calls=1,
            prompt_tokens=counts.prompt,
            reused_tokens=counts.reused,
            generated_tokens=generated,
            seconds=time.monotonic() - start,
            cost=self._prices.cost(counts.prompt, counts.reused, generated),
        )
        return Generation(text="", finish=answer.finish, usage=usage)

    def _cut(self, chat: Chat, prefill: str) -> tuple[list[int], list[list[int]], list[list[int]], list[int]]:
        """Prefix, labels, chunks and question. Each text is encoded by itself, so that a chunk's tokens are always the
        same; what stands between two chunks is the label of the second."""
        prefix: list[int] = []
        labels: list[list[int]] = []
        chunks: list[list[int]] = []
        between: list[int] = []
        for span in self._tokens.spans(chat, prefill):
            if isinstance(span, int):
                between.append(span)
                continue
            done = 0
            for line in _LINE.finditer(span):
                if chunks:
                    between += self._tokens.text_ids(span[done : line.end(1)])
                else:
                    prefix = between + self._tokens.text_ids(span[done : line.start(1)])
                    between = self._tokens.text_ids(line[1])
                labels.append(between)
                chunks.append(self._tokens.text_ids(line[2]))
                between, done = [], line.end()
            between += self._tokens.text_ids(span[done:])
        return prefix, labels, chunks, between

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.lm.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text
