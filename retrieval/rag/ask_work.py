"""What is gathered while one question is answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from recsys.retrieval.rag.ask_answer import AskFaults
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.lm.protocol import Chat, Generation, LanguageModel
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.result import RerankResult

__all__ = ["AskWork"]


@dataclass(slots=True)
class AskWork:
    """One question under way."""

    question: str
    deadline: float | None = None
    """A reading of :func:`time.monotonic`."""
    usage: Usage = field(default_factory=Usage)
    unread: list[str] = field(default_factory=list)
    """Stretches of the question that deny something and were not understood."""
    faults: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    prompts: list[Chat] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)
    complete: bool = True

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count of :class:`AskFaults`."""
        self.faults[name] = self.faults.get(name, 0) + number

    def add_result(self, result: RerankResult) -> None:
        """What a reranker's order took, and what was wrong with the answers behind it."""
        self.usage += result.usage
        self.notes += result.notes
        self.complete &= result.complete
        for name in ("missing", "repeated", "foreign", "malformed"):
            self.count(f"rerank_{name}", getattr(result.faults, name))
        self.count("failed", result.faults.failed)

    def late(self) -> bool:
        """Whether the deadline passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1000 * (time.monotonic() - started)

    async def generate(self, lm: LanguageModel, prompt: Prompt, chat: Chat) -> Generation | None:
        """One answer of the model; None, counted and noted, where there is none."""
        if self.late():
            self.complete = False
            self.notes.append("the deadline passed, so the language model was not asked further")
            return None
        self.prompts.append(chat)
        (answer,) = await lm.generate(
            [chat],
            max_tokens=prompt.option("max_tokens", 120),
            stop=prompt.option("stop", list[str]()),
            prefill=prompt.prefill,
            deadline=self.deadline,
        )
        self.usage += answer.usage
        if answer.finish not in ("error", "deadline"):
            return answer
        self.complete = False
        self.count("failed")
        reason = as_data(answer.error or "the deadline passed", 200)
        self.notes.append(f"the language model gave no answer ({reason}); what rules know was answered")
        return None

    def gathered(self) -> dict[str, Any]:
        """The fields of an :class:`AskAnswer` that this holds."""
        return {
            "usage": self.usage,
            "faults": AskFaults(**self.faults),
            "notes": tuple(dict.fromkeys(self.notes)),
            "complete": self.complete,
            "milliseconds": self.milliseconds,
            "prompts": tuple(self.prompts),
        }
