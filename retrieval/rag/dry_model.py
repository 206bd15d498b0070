"""A language model that is told everything and says nothing, to look at prompts at no cost."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.retrieval.rag.passage import estimated_tokens
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation

__all__ = ["DryModel"]


class DryModel:
    """Gives no answer to anything, as a model that failed; whoever asks it goes on without, by rules."""

    name = "dry"
    context_tokens = 1 << 20

    async def choose(
        self,
        chats: Sequence[Chat],
        options: Sequence[Sequence[str]],
        *,
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Choice]:
        """No log-probability for anybody."""
        return [Choice(log_probs=(), error="a dry run") for _ in chats]

    async def generate(
        self,
        chats: Sequence[Chat],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Generation]:
        """No word for anybody."""
        return [Generation(text="", finish="error", error="a dry run") for _ in chats]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimates."""
        return [estimated_tokens(text) for text in texts]
