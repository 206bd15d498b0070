"""Where passages stand in a prompt: models read the beginning and the end best, so the weakest go into the middle.

"Long-Context LLMs Meet RAG", arXiv 2410.05983.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["strongest_at_both_ends"]

T = TypeVar("T")


def strongest_at_both_ends(ranked: Sequence[T]) -> list[T]:
    """Ranks 1, 3, 5, … from the front, 2, 4, 6, … from the back.

    >>> strongest_at_both_ends([1, 2, 3, 4, 5])
    [1, 3, 5, 4, 2]
    """
    return [*ranked[::2], *reversed(ranked[1::2])]
