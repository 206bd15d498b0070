"""A question put to a model that runs here, with its answer as far as it has come."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Literal

__all__ = ["Job", "Question"]


class Job:
    """Questions of one call; ``future`` is done when all of them are."""

    def __init__(self, questions: list[Question]) -> None:
        self.questions = questions
        self.future: Future[None] = Future()
        self.future.set_running_or_notify_cancel()
        self._open = len(questions)
        for question in questions:
            question.job = self

    def one_less(self) -> None:
        """A question has got its answer."""
        self._open -= 1
        if not self._open and not self.future.done():
            self.future.set_result(None)


class Question:
    """Written by the model's thread, read by the caller's. Either ``options`` or ``max_tokens`` is given."""

    __slots__ = (
        "computed",
        "deadline",
        "dropped",
        "error",
        "finish",
        "job",
        "log_probs",
        "max_tokens",
        "options",
        "prompt",
        "seconds",
        "stop",
        "text",
        "tokens",
    )

    def __init__(
        self,
        prompt: list[int],
        *,
        options: list[int] | None = None,
        max_tokens: int = 0,
        stop: tuple[str, ...] = (),
        deadline: float | None = None,
    ) -> None:
        self.prompt, self.options, self.max_tokens, self.stop = prompt, options, max_tokens, stop
        self.deadline = deadline
        self.job: Job | None = None
        self.dropped = False
        """The caller waits no longer."""
        self.log_probs: tuple[float, ...] = ()
        self.tokens: list[int] = []
        self.text = ""
        self.computed = 0
        """Prompt tokens computed for this question; others came from earlier prompts or from its neighbours."""
        self.seconds = 0.0
        self.finish: Literal["stop", "length", "deadline", "error"] | None = None
        self.error: str | None = None

    @property
    def alive(self) -> bool:
        """Whether anybody still waits for more of the answer."""
        if self.finish is not None or self.dropped:
            return False
        return self.deadline is None or time.monotonic() < self.deadline

    def end(self, finish: Literal["stop", "length", "deadline", "error"], error: str | None = None) -> None:
        """No more of the answer will come."""
        if self.finish is None:
            self.finish, self.error = finish, error
            if self.job is not None:
                self.job.one_less()
