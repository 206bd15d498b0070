"""Answers of a local language model to prompts whose chunks recur: Cache-Craft (arXiv 2502.15734).

A prompt is a prefix (instructions), chunks (passages) and a question. Chunks seen before bring their keys and values
along, turned to their new place; of each, the tokens that leaned most on what stood before it are computed again at
every layer, as many as its changed context asks for (:mod:`recsys.retrieval.rag.chunk_impact`). The question and new
chunks are computed. Behind the same chunks as before, nothing of a chunk is: that is prefix caching, and exact.

>>> reuse = ChunkReuse(lm.model)  # doctest: +SKIP
>>> reuse.answer(instructions, [passage_1, passage_2], question, max_tokens=100, stop=[eos]).tokens  # doctest: +SKIP

Tokens of a chunk must not depend on its neighbours: encode every part of a prompt by itself.

Suffixes: V = layers, H = key heads, R = computed rows, T = tokens of the prompt and its answer, N = tokens of a
chunk, D = width of a head, S = chunks, W = vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from recsys.errors import InputError, shown
from recsys.retrieval.rag.chunk_forward import ChunkForward, KeysValues, Watched, weights_hash
from recsys.retrieval.rag.chunk_impact import context_impact
from recsys.retrieval.rag.chunk_plan import ChunkPart, ReuseCounts, count_tokens, plan_parts
from recsys.retrieval.rag.chunk_store import ChunkStore, ChunkVariant

__all__ = ["ChunkAnswer", "ChunkReuse", "PromptState", "ReuseCounts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptState:
    """A prompt that was read."""

    logits_W: Tensor
    """float32, of the first token of the answer."""
    kv: KeysValues
    num_tokens: int
    """Tokens that have keys and values; ``kv`` may have room for more."""
    counts: ReuseCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAnswer:
    """What greedy decoding gave."""

    tokens: tuple[int, ...]
    """Without the token that stopped it."""
    finish: Literal["stop", "length", "deadline"]
    counts: ReuseCounts


class ChunkReuse:
    """Reads prompts made of chunks and answers them. Calls may run in several threads and share the store.

    Args:
        model: of transformers, built like Llama, Mistral or Qwen.
        store: kept chunks of this very model; None = one of ``max_bytes``.
        max_bytes: of a store made here.
        alpha: how much is computed again (α of the paper). 0 computes nothing of a kept chunk again, infinity
            everything that does not stand behind the same tokens: then all is exact, and reuse is prefix caching. The
            default is the least of 0, .3, .6, 1 and 1.5 from which on at least 95 % of first tokens and 97 % of all
            tokens of an answer stayed as they are when everything is computed (SmolLM2-135M, 24 prompts of 6 out of 24
            item texts): 100 % and 99 %, for 36 % fewer tokens than everything and 21 % fewer than prefix caching. 0.6
            computed 57 % and 46 % fewer, with 96 % and 97 % (1 gave 92 % and 96 %: so few prompts tell no more).
        whole_from: a chunk of which this share or more would be computed again is computed as a whole and kept as
            another variant.

    ``context_tokens`` is the most that prompt and answer may take.

    Raises:
        InputError: the model is built otherwise, or the store belongs to another one.
    """

    def __init__(
        self,
        model: Any,
        store: ChunkStore | None = None,
        *,
        max_bytes: int = 1 << 30,
        alpha: float = 1.5,
        whole_from: float = 0.7,
    ) -> None:
        if not alpha >= 0:
            raise InputError(f"alpha must be 0 or more, got {alpha}")
        if not 0 <= whole_from <= 1:
            raise InputError(f"whole_from is a share from 0 to 1, got {whole_from}")
        self._forward = ChunkForward(model)
        found = weights_hash(model)
        self.store = ChunkStore(found, max_bytes=max_bytes) if store is None else store
        if self.store.model_hash != found:
            raise InputError("the store holds keys and values of another model; give each model a store of its own")
        self.context_tokens = self._forward.context_tokens
        self.alpha = alpha
        self.whole_from = whole_from

    def answer(
        self,
        prefix: Sequence[int],
        chunks: Sequence[Sequence[int]],
        question: Sequence[int],
        *,
        max_tokens: int,
        labels: Sequence[Sequence[int]] | None = None,
        stop: Collection[int] = (),
        deadline: float | None = None,
    ) -> ChunkAnswer:
        """:meth:`read` a prompt, then :meth:`decode`."""
        state = self.read(prefix, chunks, question, labels=labels, room=max_tokens)
        return self.decode(state, max_tokens=max_tokens, stop=stop, deadline=deadline)

    def decode(
        self,
        state: PromptState,
        *,
        max_tokens: int,
        stop: Collection[int] = (),
        ended: Callable[[Sequence[int]], bool] | None = None,
        deadline: float | None = None,
    ) -> ChunkAnswer:
        """Go on greedily behind a prompt, in the room that it was read with. A state is good for one answer at a time.

        Args:
            stop: tokens that end the answer and are no part of it.
            ended: told all tokens after each one; True ends the answer.
            deadline: a reading of :func:`time.monotonic` past which no further token is decoded.
        """
        _check_room(state, max_tokens)
        logits_W, place, tokens = state.logits_W, state.num_tokens, list[int]()
        finish: Literal["stop", "length", "deadline"] = "length"
        while len(tokens) < max_tokens:
            if deadline is not None and time.monotonic() > deadline:
                finish = "deadline"
                break
            token = int(logits_W.argmax())
            if token not in stop:
                tokens.append(token)
            if token in stop or (ended is not None and ended(tokens)):
                finish = "stop"
                break
            if len(tokens) < max_tokens:
                out_RE, _ = self._forward.rows(state.kv, self._ints([token]), self._ints([place]))
                logits_W, place = self._forward.logits(out_RE)[0], place + 1
        return ChunkAnswer(tokens=tuple(tokens), finish=finish, counts=state.counts)

    def follow(self, state: PromptState, tokens: Sequence[int]) -> Tensor:
        """Logits behind a prompt and behind each of some tokens after it, computed together: what an answer is worth.

        Returns:
            [tokens + 1, W] float32; the first row is that of the prompt.
        """
        _check_room(state, len(tokens))
        if not tokens:
            return state.logits_W[None]
        first = state.num_tokens
        places_R = self._ints(range(first, first + len(tokens)))
        out_RE, _ = self._forward.rows(state.kv, self._ints(tokens), places_R)
        return torch.cat([state.logits_W[None], self._forward.logits(out_RE)])

    def read(
        self,
        prefix: Sequence[int],
        chunks: Sequence[Sequence[int]],
        question: Sequence[int],
        *,
        labels: Sequence[Sequence[int]] | None = None,
        room: int = 0,
    ) -> PromptState:
        """Keys, values and next-token logits of a prompt; new chunks are kept.

        Args:
            prefix: tokens before the chunks; may be empty.
            chunks: tokens of each; empty ones are left out.
            question: at least one token; never reused.
            labels: tokens in front of each chunk, such as its number, which change with its place: never reused, and
                no part of the chunk. None = none.
            room: tokens to be decoded behind it.

        Raises:
            InputError: the question is empty, labels are more or fewer than chunks, a token is not of the vocabulary,
                or the prompt is too long.
        """
        if labels is not None and len(labels) != len(chunks):
            raise InputError(f"{len(chunks)} chunks, but {len(labels)} labels; give each chunk one, empty or not")
        labelled = zip(labels if labels is not None else [()] * len(chunks), chunks, strict=True)
        pairs = [(tuple(label), tuple(chunk)) for label, chunk in labelled if len(chunk)]
        prompt = [*prefix, *(token for label, chunk in pairs for token in (*label, *chunk)), *question]
        self._check(prompt, question, room)
        parts = plan_parts(self.store, tuple(prefix), pairs, alpha=self.alpha, whole_from=self.whole_from)
        kv = self._forward.empty(len(prompt) + room)
        fresh = torch.ones(len(prompt), dtype=torch.bool)
        watch = torch.zeros(len(prompt), dtype=torch.bool)
        for part in parts:
            at = slice(part.first, part.first + len(part.tokens))
            if part.variant is None:
                watch[at] = self.store.max_bytes > 0
            else:
                self._forward.place(kv, part.first, part.variant.keys_VHND, part.variant.values_VHND)
                fresh[at] = False
                fresh[part.first + part.again] = True
        places = fresh.nonzero()[:, 0]
        out_RE, watched = self._forward.rows(
            kv,
            self._ints(prompt)[places.to(self._forward.device)],
            places.to(self._forward.device),
            watch_R=watch[places].to(self._forward.device),
            segments_TS=None if math.isinf(self.alpha) else self._segments(parts, len(prompt)),
        )
        self.store.used([part.variant for part in parts if part.variant is not None])
        if watched is not None:
            self._keep(parts, kv, watched)
        return PromptState(
            logits_W=self._forward.logits(out_RE[-1:])[0],
            kv=kv,
            num_tokens=len(prompt),
            counts=count_tokens(parts, len(prompt), len(places)),
        )

    def _keep(self, parts: Sequence[ChunkPart], kv: KeysValues, watched: Watched) -> None:
        """Put the parts that were computed as a whole into the store."""
        row = 0
        for at, part in enumerate(parts):
            if part.variant is not None:
                continue
            length = len(part.tokens)
            rows = slice(row, row + length)
            row += length
            # Where attention was not looked at, the context may have shaped everything.
            inter_N, inter_before, impact = torch.zeros(length), (0.0,) * len(part.before), 1.0
            if watched.mass_RS.shape[1]:
                mass_NS = watched.mass_RS[rows, : at + 1].cpu()
                inter_NS = mass_NS[:, at - len(part.before) : at]
                inter_N, inter_before = inter_NS.sum(1), tuple(inter_NS.sum(0).tolist())
                lengths = [len(chunk) for chunk in part.before]
                impact = context_impact(inter_before, lengths, float(mass_NS[:, at].sum()), length)
            self.store.put(
                ChunkVariant(
                    prefix=part.prefix,
                    tokens=part.tokens,
                    before=part.before,
                    labels=part.labels,
                    keys_VHND=watched.keys_VHRD[:, :, rows].clone(),
                    values_VHND=kv.values_VHTD[:, :, part.first : part.first + length].clone(),
                    inter_N=inter_N,
                    inter_before=inter_before,
                    impact=impact,
                    exact=part.behind_exact,
                )
            )

    def _segments(self, parts: Sequence[ChunkPart], num_tokens: int) -> Tensor:
        """[T, S] float32, 1 where a token belongs to a part."""
        segments_TS = torch.zeros(num_tokens, len(parts))
        for at, part in enumerate(parts):
            segments_TS[part.first : part.first + len(part.tokens), at] = 1
        return segments_TS.to(self._forward.device)

    def _check(self, prompt: Sequence[int], question: Sequence[int], room: int) -> None:
        """
        Raises:
            InputError: see :meth:`read`.
        """
        if not len(question):
            raise InputError("the question has no token; give at least one behind the chunks")
        wrong = next((token for token in prompt if not 0 <= token < self._forward.num_words), None)
        if wrong is not None:
            raise InputError(f"token {shown(wrong)} is not one of the model's {self._forward.num_words}")
        if len(prompt) + room > self._forward.context_tokens:
            raise InputError(
                f"prompt and answer take {len(prompt) + room} tokens, the model reads {self._forward.context_tokens}; "
                "give fewer chunks"
            )

    def _ints(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._forward.device)


def _check_room(state: PromptState, num_tokens: int) -> None:
    if state.num_tokens + num_tokens > state.kv.keys_VHTD.shape[2]:
        raise InputError(f"there is no room for {num_tokens} tokens; read the prompt with room={num_tokens}")
