"""Long lists in windows that overlap, from the tail to the head."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.errors import InputError
from recsys.retrieval.rerank.in_step import Work
from recsys.retrieval.rerank.prompted import at_least

__all__ = ["Window", "check_window", "num_windows", "sliding_windows"]

Window = tuple[int, ...]
"""Places of the candidates in question, in their order so far."""


def check_window(window: int, step: int, most: int) -> tuple[int, int]:
    """Window and step of a caller.

    Raises:
        InputError: the window is no number from 2 to ``most``, or the step no number from 1 to the window.
    """
    at_least(2, "window", window, 2)
    at_least(1, "step", step, 1)
    if window > most:
        raise InputError(f"window {window} is too wide: this method tells at most {most} candidates apart")
    if step > window:
        raise InputError(f"step {step} leaves out candidates between windows of {window}; give at most {window}")
    return window, step


def num_windows(count: int, window: int, step: int) -> int:
    """How many windows a list takes.

    >>> num_windows(100, 20, 10), num_windows(20, 20, 10), num_windows(25, 20, 10), num_windows(1, 20, 10)
    (9, 1, 2, 0)
    """
    return 0 if count < 2 else 1 + max(0, -(-(count - window) // step))


def sliding_windows(count: int, window: int, step: int) -> Work[Window, Sequence[int], list[int]]:
    """The order after every window was ordered once, the last one first.

    Yields one window at a time and is sent its order: a permutation of 0 … its length - 1. The first window of the
    list begins at its head, whatever count and step are.
    """
    order = list(range(count))
    end = count
    for _ in range(num_windows(count, window, step)):
        start = max(0, end - window)
        (local,) = yield [tuple(order[start:end])]
        order[start:end] = [order[start + at] for at in local]
        end = max(start + window - step, 2)
    return order
