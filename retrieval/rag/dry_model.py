"""A language model and a reranker that note what would be asked and say nothing, to look at prompts at no cost."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.retrieval.rag.passage import estimated_tokens
from recsys.retrieval.rerank.cross_encoder import CrossEncoderReranker
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation, Message
from recsys.retrieval.rerank.prompted import PromptedReranker
from recsys.retrieval.rerank.request import RerankRequest
from recsys.retrieval.rerank.reranker import Reranker
from recsys.retrieval.rerank.result import RerankResult

__all__ = ["DryModel", "DryReranker"]


class DryModel:
    """Gives no answer to anything, as a model that failed; whoever asks it goes on without, by rules."""

    name = "dry"
    context_tokens = 1 << 20

    def __init__(self) -> None:
        self.told: list[Chat] = []
        """Everything, in order."""

    async def choose(
        self,
        chats: Sequence[Chat],
        options: Sequence[Sequence[str]],
        *,
        prefill: str = "",
        deadline: float | None = None,
    ) -> list[Choice]:
        """No log-probability for anybody."""
        self.told += chats
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
        self.told += chats
        return [Generation(text="", finish="error", error="a dry run") for _ in chats]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimates."""
        return [estimated_tokens(text) for text in texts]


class DryReranker(Reranker):
    """Keeps every order; notes in a dry model what another reranker would ask first, or read beside each item."""

    def __init__(self, reranker: Reranker, model: DryModel) -> None:
        self.reranker, self.model, self.name = reranker, model, reranker.name

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """As :class:`Reranker` says, at once."""
        for request in requests:
            if isinstance(self.reranker, PromptedReranker):
                self.model.told += self.reranker.questions(request)
            elif isinstance(self.reranker, CrossEncoderReranker):
                self.model.told.append([Message("user", self.reranker.query(request))])
        return [RerankResult.unchanged(request.ids, "a dry run") for request in requests]
