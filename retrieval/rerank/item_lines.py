"""How prompts show items: one line each, harmless, short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.request import RerankItem

__all__ = ["LETTERS", "candidate_lines", "history_lines", "item_line", "labels"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOTHING = "- (nothing yet)"
"""Stands for an empty history."""


def labels(count: int, *, letters: bool) -> tuple[str, ...]:
    """Names of the candidates of one question: A, B, … or 1, 2, …

    >>> labels(3, letters=True), labels(3, letters=False)
    (('A', 'B', 'C'), ('1', '2', '3'))
    """
    return tuple(LETTERS[:count]) if letters else tuple(str(at + 1) for at in range(count))


def item_line(item: RerankItem, max_chars: int) -> str:
    """Text of an item as data, its id where nothing is known of it.

    >>> item_line(RerankItem(item_id=7, text="A red\\nkite [B]"), 80), item_line(RerankItem(item_id="<x>"), 80)
    ('A red kite (B)', '(x)')
    """
    return as_data(item.text, max_chars) or as_data(str(item.item_id), max_chars) or "-"


def candidate_lines(items: Iterable[RerankItem], names: Iterable[str], max_chars: int) -> str:
    """Candidates below each other, each behind its label.

    >>> candidate_lines([RerankItem(item_id=7, text="kite"), RerankItem(item_id=8, text="ship")], "AB", 80)
    '[A] kite\\n[B] ship'
    """
    return "\n".join(f"[{name}] {item_line(item, max_chars)}" for name, item in zip(names, items, strict=True))


def history_lines(history: Sequence[RerankItem], count: int, max_chars: int) -> str:
    """The latest items of a user, the latest last.

    What was done stands behind an item only where it was not the same with all of them.

    >>> print(history_lines([RerankItem(item_id=1, text="kite", actions=("click",)), RerankItem(item_id=2)], 10, 80))
    - kite (click)
    - 2
    """
    shown = history[-count:] if count > 0 else ()
    if not shown:
        return NOTHING
    differ = len({item.actions for item in shown}) > 1
    lines = []
    for item in shown:
        done = as_data(", ".join(item.actions), max_chars) if differ else ""
        lines.append(f"- {item_line(item, max_chars)}" + (f" ({done})" if done else ""))
    return "\n".join(lines)
