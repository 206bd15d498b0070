"""Causal language models of transformers, run in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.retrieval.rerank.lm.chat_tokens import ChatTokens
from recsys.retrieval.rerank.lm.model_folder import load_model_folder
from recsys.retrieval.rerank.lm.model_worker import ModelWorker
from recsys.retrieval.rerank.lm.prefix_store import PrefixStore
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation
from recsys.retrieval.rerank.lm.question import Job, Question
from recsys.retrieval.rerank.lm.run_pass import check_runs
from recsys.retrieval.rerank.lm.usage import Prices, Usage

__all__ = ["LocalLanguageModel"]

LATE = "the deadline passed"


class LocalLanguageModel:
    """A language model in a local folder, as :class:`LanguageModel` describes it. Make it with :meth:`load`.

    It computes in a thread of its own, batches what callers ask at the same time, and computes tokens that prompts
    begin with in common once: within a call, and across calls as long as their keys and values are kept. So put what
    prompts share (instructions, then the history) first, and what differs last.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        where: object = "the model",
        prices: Prices | None = None,
        kept_bytes: int = 1 << 29,
        batch_tokens: int | None = None,
        reuse: bool = True,
    ) -> None:
        """
        Args:
            model: a causal language model of transformers, in eval mode.
            tokenizer: its own.
            where: in messages about it.
            name, prices, kept_bytes, batch_tokens, reuse: as in :meth:`load`.

        Raises:
            InputError: the model keeps no keys and values per token, or there is no chat template.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.context_tokens = _context_tokens(model.config.get_text_config(), tokenizer)
        self._prices = prices or Prices()
        self._tokens = ChatTokens(tokenizer, where)
        ends = model.generation_config.eos_token_id
        stop_ids = self._tokens.stop_ids | set([ends] if isinstance(ends, int) else ends or [])
        if batch_tokens is None:
            batch_tokens = 512 if model.device.type == "cpu" else 16384
        if batch_tokens < 1 or kept_bytes < 0:
            raise InputError(f"batch_tokens {batch_tokens} or kept_bytes {kept_bytes} is too small; give more")
        check_runs(model, where)
        self._store = PrefixStore(kept_bytes) if reuse else None
        self._worker = ModelWorker(model, tokenizer, stop_ids=stop_ids, batch_tokens=batch_tokens, store=self._store)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        name: str | None = None,
        prices: Prices | None = None,
        kept_bytes: int = 1 << 29,
        batch_tokens: int | None = None,
        reuse: bool = True,
    ) -> LocalLanguageModel:
        """Load a model and its tokenizer from a folder; nothing is fetched, and no code of the folder is run.

        Args:
            path: folder as ``save_pretrained`` writes it, with a chat template.
            device: as torch names it; auto = the GPU if there is one.
            dtype: bfloat16, float16 or float32; auto = bfloat16 on a GPU that has it, else float32.
            name: in results; by default the folder's.
            prices: to count a cost.
            kept_bytes: of keys and values of earlier prompts, kept for later ones that begin alike.
            batch_tokens: most new tokens computed together; by default 512 on a CPU, where larger batches gain
                nothing and delay deadlines, and 16384 on a GPU.
            reuse: False computes every token of every prompt, to compare with.

        Raises:
            InputError: the folder is missing or holds no such model, or transformers is not installed.
        """
        path = Path(path)
        model, tokenizer = load_model_folder(path, device=device, dtype=dtype)
        return cls(
            model,
            tokenizer,
            name=name or path.resolve().name,
            where=path,
            prices=prices,
            kept_bytes=kept_bytes,
            batch_tokens=batch_tokens,
            reuse=reuse,
        )

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that went through the model since it was loaded, reused ones not among them."""
        return self._worker.computed_tokens

    @property
    def kept_bytes(self) -> int:
        """Of keys and values kept now."""
        return 0 if self._store is None else self._store.num_bytes

    def forget(self) -> None:
        """Drop the keys and values of earlier prompts: call it after changing the model's weights."""
        self._worker.forget()

    def encode_chat(self, chat: Chat, prefill: str = "") -> list[int]:
        """Tokens of a chat as the model reads it. Texts of messages never become special tokens."""
        return self._tokens.encode(chat, prefill)[0]

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a plain text, none of them special."""
        return self._tokens.text_ids(text)

    @property
    def prices(self) -> Prices:
        """That costs are counted by."""
        return self._prices

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of plain texts."""
        return [len(self._tokens.text_ids(text)) for text in texts]

    async def choose(
        self,
        chats: Sequence[Chat],
        options: Sequence[Sequence[str]],
        *,
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Choice]:
        """As :class:`LanguageModel` says. An option is one token where it stands, after ``prefill``, or by itself."""
        if len(options) != len(chats):
            raise InputError(f"{len(chats)} chats, but options for {len(options)}; give options for every chat")

        def questions() -> list[Question]:
            out = []
            for chat, texts in zip(chats, options, strict=True):
                prompt, before = self._tokens.encode(chat, prefill)
                out.append(Question(prompt, options=self._tokens.option_ids(texts, before), deadline=deadline))
            return out

        answered = await self._ask(questions, deadline)
        out = []
        for question in answered:
            error = question.error or (None if question.finish == "stop" else LATE)
            log_probs = question.log_probs if error is None else ()
            out.append(Choice(log_probs=log_probs, usage=self._usage(question), error=error))
        return out

    async def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Generation]:
        """As :class:`LanguageModel` says."""
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; give at least 1")
        if "" in stop:
            raise InputError("a stop string is empty; leave it out")

        def questions() -> list[Question]:
            out = []
            for chat in chats:
                prompt = self.encode_chat(chat, prefill)
                most = min(max_tokens, self.context_tokens - len(prompt))
                out.append(Question(prompt, max_tokens=most, stop=tuple(stop), deadline=deadline))
            return out

        answered = await self._ask(questions, deadline)
        return [
            Generation(
                text=question.text,
                finish=question.finish or "deadline",
                usage=self._usage(question),
                error=question.error,
            )
            for question in answered
        ]

    async def _ask(self, make: Callable[[], list[Question]], deadline: float | None) -> list[Question]:
        """Questions as far as they are answered by the deadline. Tokenizing takes time as well: in a thread."""
        questions = await asyncio.to_thread(make)
        for question in questions:
            if len(question.prompt) >= self.context_tokens:
                most = self.context_tokens - 1
                question.end("error", f"the prompt is {len(question.prompt)} tokens, and {self.name} takes {most}")
        job = Job([question for question in questions if question.finish is None])
        if not job.questions:
            return questions
        self._worker.submit(job)
        done = asyncio.wrap_future(job.future)
        try:
            await asyncio.wait([done], timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            for question in job.questions:
                question.dropped = True  # nobody waits any more; those that are done stay so
            if not done.done():
                done.cancel()
        if job.future.done():
            job.future.result()
        return questions

    def _usage(self, question: Question) -> Usage:
        generated = len(question.tokens)
        answered = bool(question.log_probs or question.tokens) or question.finish == "stop"
        prompt = len(question.prompt) if answered else question.computed
        reused = prompt - question.computed
        return Usage(
            calls=1,
            prompt_tokens=prompt,
            reused_tokens=reused,
            generated_tokens=generated,
            seconds=question.seconds,
            cost=self._prices.cost(prompt, reused, generated),
        )


def _context_tokens(config: Any, tokenizer: Any) -> int:
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    context = int(next((limit for limit in limits if limit and limit < 1 << 30), 2048))
    rotary = getattr(config, "rope_parameters", None) or {}
    for one in (rotary, *(part for part in rotary.values() if isinstance(part, dict))):
        if one.get("rope_type") == "longrope":
            # Beyond this length such a model turns all positions of a pass by other angles: kept keys would not fit,
            # nor shorter prompts beside a longer one.
            context = min(context, int(one["original_max_position_embeddings"]))
    return context
