"""What rerankers and answers need of a language model, whoever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from recsys.retrieval.rerank.lm.usage import Usage

__all__ = ["Chat", "Choice", "Generation", "LanguageModel", "Message"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    """Plain text: where it looks like a token of the chat template, it is read as text, never as that token."""


Chat = Sequence[Message]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How likely each of the given first tokens of an answer is."""

    log_probs: tuple[float, ...]
    """Natural logarithms in the order of the options, over the model's whole vocabulary; -inf for an option that a
    server left out of its list. Empty where ``error`` is set."""
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    """One line: why there is no answer. Never raised, so that one bad answer does not spoil a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """An answer in words."""

    text: str
    finish: Literal["stop", "length", "deadline", "error"]
    """``deadline`` and ``error`` keep the text that had come until then."""
    usage: Usage = field(default_factory=Usage)
    error: str | None = None


class LanguageModel(Protocol):
    """A causal language model. All calls may run at the same time, from any event loop.

    ``deadline`` is a reading of :func:`time.monotonic`: past it calls return what they have, with ``error`` set or
    ``finish`` = ``deadline``. Only what the caller did wrong is raised, as :class:`recsys.errors.InputError`.
    """

    name: str
    context_tokens: int
    """Most tokens of prompt and answer together."""

    async def choose(
        self,
        chats: Sequence[Chat],
        options: Sequence[Sequence[str]],
        *,
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Choice]:
        """Log-probability of each option as the next token.

        Args:
            chats: one question each.
            options: of each chat, distinct strings that are one token each after ``prefill``.
            prefill: beginning of the answer, already there.

        Raises:
            InputError: an option is not a single token (the message names it), or options repeat.
        """
        ...

    async def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Generation]:
        """Answers of greedy decoding, ``prefill`` and stop strings not part of the text."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of plain texts; an estimate where the tokenizer is the server's own."""
        ...
