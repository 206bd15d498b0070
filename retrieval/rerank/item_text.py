"""What rerankers and answers read of an item: its title and its text, as one string."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

__all__ = ["item_texts"]


def item_texts(items: pl.DataFrame, rows: Iterable[int]) -> list[str]:
    """Title and text of some rows of an item table.

    A text that begins with the title is taken as it is; an item without either has the empty string.

    >>> table = pl.DataFrame({"item_id": [1, 2], "title": ["Kite", None], "text": ["Kite, red", "A ship."]})
    >>> item_texts(table, [0, 1, 0])
    ['Kite, red', 'A ship.', 'Kite, red']
    """
    wanted = list(rows)
    columns = [name for name in ("title", "text") if name in items.columns]
    if not columns:
        return [""] * len(wanted)
    found = items.select(pl.col(name).cast(pl.String) for name in columns)[wanted]
    return [_joined(*(str(value or "").strip() for value in row)) for row in found.iter_rows()]


def _joined(title: str, text: str = "") -> str:
    if not title or text.startswith(title):
        return text or title
    return f"{title}. {text}" if text else title
