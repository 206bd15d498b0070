"""Causal language models of transformers, run in this process.

Suffixes: B = questions computed together, N = tokens of the longest, V = vocabulary.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.retrieval.rerank.lm.chat_tokens import ChatTokens
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation
from recsys.retrieval.rerank.lm.usage import Prices, Usage

__all__ = ["LocalLanguageModel"]


class LocalLanguageModel:
    """A language model in a local folder. Make it with :meth:`load`."""

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, where: object, prices: Prices | None, batch_tokens: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.context_tokens = int(model.config.get_text_config().max_position_embeddings)
        self._prices = prices or Prices()
        self._batch_tokens = batch_tokens
        self._tokens = ChatTokens(tokenizer, where)
        ends = model.generation_config.eos_token_id
        self._stop_ids = self._tokens.stop_ids | set([ends] if isinstance(ends, int) else ends or [])
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"lm-{name}")

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
    ) -> LocalLanguageModel:
        """Load a model and its tokenizer from a folder; nothing is fetched, and no code of the folder is run.

        Args:
            path: folder as ``save_pretrained`` writes it.
            device: as torch names it; auto = the GPU if there is one.
            dtype: bfloat16, float16 or float32; auto = bfloat16 on a GPU that has it, else float32.
            name: in results; by default the folder's.
            prices: to count a cost.
            kept_bytes: of keys and values of earlier prompts.
            batch_tokens: most tokens of one batch; by default 512 on a CPU, 16384 on a GPU.

        Raises:
            InputError: the folder is missing or holds no such model, or transformers is not installed.
        """
        path = Path(path)
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise InputError(f"local language models need transformers ({error}); pip install 'recsys[llm]'") from None
        if not (path / "config.json").is_file():
            raise InputError(f"{path} holds no language model (no config.json); give a folder of save_pretrained")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} cannot be read as a causal language model: {' '.join(str(error).split())}"
            ) from None
        model = model.to(device).eval().requires_grad_(False)
        if batch_tokens is None:
            batch_tokens = 512 if device == "cpu" else 16384
        return cls(model, tokenizer, name=name or path.name, where=path, prices=prices, batch_tokens=batch_tokens)

    def encode_chat(self, chat: Chat, prefill: str = "") -> list[int]:
        """Tokens of a chat as the model reads it. Texts of messages never become special tokens."""
        return self._tokens.encode(chat, prefill)[0]

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
        """As :class:`LanguageModel` says."""
        if len(options) != len(chats):
            raise InputError(f"{len(chats)} chats, but options for {len(options)}; give options for every chat")
        prompts, option_ids = [], []
        for chat, texts in zip(chats, options, strict=True):
            ids, before = self._tokens.encode(chat, prefill)
            prompts.append(ids)
            option_ids.append(self._tokens.option_ids(texts, before))
        return await self._run(self._choose, prompts, option_ids, deadline)

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
        prompts = [self.encode_chat(chat, prefill) for chat in chats]
        return await self._run(self._generate, prompts, max_tokens, tuple(stop), deadline)

    async def _run(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)

    def _too_long(self, prompt: list[int]) -> str | None:
        if len(prompt) + 1 > self.context_tokens:
            return f"the prompt is {len(prompt)} tokens, and {self.name} takes {self.context_tokens - 1} of them"
        return None

    def _batches(self, prompts: list[list[int]]) -> list[list[int]]:
        batches: list[list[int]] = []
        for at in sorted(range(len(prompts)), key=lambda at: -len(prompts[at])):
            if self._too_long(prompts[at]):
                continue
            if not batches or (len(batches[-1]) + 1) * len(prompts[batches[-1][0]]) > self._batch_tokens:
                batches.append([])
            batches[-1].append(at)
        return batches

    def _usage(self, seconds: float, prompt: int, generated: int = 0) -> Usage:
        return Usage(
            calls=1,
            prompt_tokens=prompt,
            generated_tokens=generated,
            seconds=seconds,
            cost=self._prices.cost(prompt, 0, generated),
        )

    def _prefill(self, prompts: list[list[int]]) -> tuple[Any, Tensor, Tensor]:
        width = max(len(prompt) for prompt in prompts)
        ids_BN = torch.zeros((len(prompts), width), dtype=torch.int64)
        mask_BN = torch.zeros_like(ids_BN)
        for row, prompt in enumerate(prompts):
            ids_BN[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BN[row, width - len(prompt) :] = 1
        place_BN = (mask_BN.cumsum(1) - 1).clamp(min=0)
        device = self.model.device
        out = self.model(
            input_ids=ids_BN.to(device),
            attention_mask=mask_BN.to(device),
            position_ids=place_BN.to(device),
            use_cache=True,
            logits_to_keep=1,
        )
        return out.past_key_values, out.logits[:, -1].float(), mask_BN

    @torch.inference_mode()
    def _choose(self, prompts: list[list[int]], options: list[list[int]], deadline: float | None) -> list[Choice]:
        out = [Choice(log_probs=(), error=self._too_long(prompt) or "the deadline passed") for prompt in prompts]
        for batch in self._batches(prompts):
            start = time.monotonic()
            if deadline is not None and start > deadline:
                break
            log_prob_BV = self._prefill([prompts[at] for at in batch])[1].log_softmax(-1)
            values = [log_prob_BV[row, options[at]].tolist() for row, at in enumerate(batch)]
            seconds = (time.monotonic() - start) / len(batch)
            for at, value in zip(batch, values, strict=True):
                out[at] = Choice(log_probs=tuple(value), usage=self._usage(seconds, len(prompts[at])))
        return out

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], max_tokens: int, stop: tuple[str, ...], deadline: float | None
    ) -> list[Generation]:
        out = []
        for prompt in prompts:
            error = self._too_long(prompt)
            finish: Any = "error" if error else "deadline"
            out.append(Generation(text="", finish=finish, error=error))
        for batch in self._batches(prompts):
            start = time.monotonic()
            if deadline is not None and start > deadline:
                break
            cache, logits_BV, mask_BN = self._prefill([prompts[at] for at in batch])
            answers: list[list[int]] = [[] for _ in batch]
            texts = [""] * len(batch)
            finished: list[Any] = [None] * len(batch)
            while True:
                chosen_B = logits_BV.argmax(-1).cpu()
                for row, token in enumerate(chosen_B.tolist()):
                    if finished[row]:
                        continue
                    if token in self._stop_ids:
                        finished[row] = "stop"
                        continue
                    answers[row].append(token)
                    texts[row] = self.tokenizer.decode(answers[row], skip_special_tokens=True)
                    ends = [texts[row].find(end) for end in stop if end in texts[row]]
                    if ends:
                        texts[row] = texts[row][: min(ends)]
                        finished[row] = "stop"
                    elif len(answers[row]) >= min(max_tokens, self.context_tokens - len(prompts[batch[row]])):
                        finished[row] = "length"
                if all(finished):
                    break
                if deadline is not None and time.monotonic() > deadline:
                    finished = [end or "deadline" for end in finished]
                    break
                mask_BN = torch.cat([mask_BN, torch.ones((len(batch), 1), dtype=torch.int64)], 1)
                result = self.model(
                    input_ids=chosen_B[:, None].to(self.model.device),
                    attention_mask=mask_BN.to(self.model.device),
                    position_ids=(mask_BN.sum(1, keepdim=True) - 1).to(self.model.device),
                    past_key_values=cache,
                    use_cache=True,
                )
                cache, logits_BV = result.past_key_values, result.logits[:, -1].float()
            seconds = (time.monotonic() - start) / len(batch)
            for row, at in enumerate(batch):
                usage = self._usage(seconds, len(prompts[at]), len(answers[row]))
                out[at] = Generation(text=texts[row], finish=finished[row], usage=usage)
        return out
