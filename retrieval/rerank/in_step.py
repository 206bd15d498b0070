"""Several pieces of work that ask questions, run side by side, so that their questions are answered together."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import islice
from typing import Any, TypeVar

__all__ = ["Work", "in_step"]

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")

Work = Generator[list[Question], list[Answer], Result]
"""Yields lists of questions, is sent their answers in the same order, returns a result."""


def in_step(works: Sequence[Work[Question, Answer, Result]]) -> Work[tuple[int, Question], Answer, list[Result]]:
    """One piece of work that holds several.

    Its questions are those that each piece has at this moment, with the number of the piece; its result is theirs.

    >>> def twice(n):
    ...     first, = yield [n]
    ...     second, = yield [first]
    ...     return second
    >>> both = in_step([twice(1), twice(5)])
    >>> next(both), both.send([2, 6])
    ([(0, 1), (1, 5)], [(0, 2), (1, 6)])
    """
    results: list[Any] = [None] * len(works)
    waiting: dict[int, list[Question]] = {}

    def go_on(at: int, answers: list[Answer] | None) -> None:
        try:
            waiting[at] = next(works[at]) if answers is None else works[at].send(answers)
        except StopIteration as done:
            waiting.pop(at, None)
            results[at] = done.value

    for at in range(len(works)):
        go_on(at, None)
    while waiting:
        answers = iter((yield [(at, question) for at, questions in waiting.items() for question in questions]))
        for at, questions in list(waiting.items()):
            go_on(at, list(islice(answers, len(questions))))
    return results
