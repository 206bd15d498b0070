"""Passages of an item table and of documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import InputError, shown
from recsys.retrieval.rag.chunking import ChunkLimits, chunks
from recsys.retrieval.rag.passage import Passage, estimated_tokens
from recsys.tokenizers.item_content import item_texts

__all__ = ["ITEM", "document_passages", "item_passages", "read_documents"]

ITEM = "item"
"""Source of passages of the item table."""
_TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Null)
_MOST_TITLE = 80
"""Characters of a title that stand before every later piece of the same item."""


def item_passages(
    items: pl.DataFrame,
    *,
    columns: Sequence[str] = (),
    limits: ChunkLimits | None = None,
    count: Callable[[str], int] = estimated_tokens,
) -> list[Passage]:
    """Title and text of every item, cut where they are long; items without any give none.

    Args:
        items: item_id, and title or text or both, as :attr:`Recommender.items` has them.
        columns: others to append as ``name: value``, one a line; the values of a list are joined by commas.
        limits, count: see :func:`recsys.retrieval.rag.chunking.chunks`; the title before a later piece comes on top.

    Raises:
        InputError: a column is missing, or holds what has no words.
    """
    for name in ("item_id", *columns):
        if name not in items.columns:
            raise InputError(f"the item table has no column {shown(name)}; it has {', '.join(items.columns)}")
    limits = limits or ChunkLimits()
    texts = item_texts(items)
    titles = items["title"].cast(pl.String).to_list() if "title" in items.columns else [None] * items.height
    more = [_words_of(items[name]) for name in columns]
    made: list[Passage] = []
    for row, (item_id, text, title) in enumerate(zip(items["item_id"].to_list(), texts, titles, strict=True)):
        lines = [text or ""]
        lines += [f"{name}: {values[row]}" for name, values in zip(columns, more, strict=True) if values[row]]
        made += _cut("\n".join(lines), ITEM, item_id, limits, count, (title or "").strip()[:_MOST_TITLE])
    return made


def document_passages(
    documents: pl.DataFrame, *, limits: ChunkLimits | None = None, count: Callable[[str], int] = estimated_tokens
) -> list[Passage]:
    """Pieces of any texts.

    Args:
        documents: ``id``, which becomes the source of the passages, ``text``, and where a document is about one item
            ``item_id``. Rows without text give none.
        limits, count: see :func:`recsys.retrieval.rag.chunking.chunks`.

    Raises:
        InputError: a column is missing or holds something else, an id is missing or stands twice.
    """
    for name in ("id", "text"):
        if name not in documents.columns:
            raise InputError(f"the documents have no column {name!r}; they have {', '.join(documents.columns)}")
    for name, numbers in (("id", True), ("text", False), ("item_id", True)):
        kind = documents.schema.get(name, pl.Null())
        if not (kind in _TEXTS or (numbers and kind.is_integer())):
            wanted = "texts or integers" if numbers else "texts"
            raise InputError(f"the column {name!r} of the documents must hold {wanted}, and it holds {shown(kind)}")
    ids = documents["id"].cast(pl.String)
    if ids.null_count():
        raise InputError(f"row {int(ids.is_null().arg_true()[0])} of the documents has no id; give every one its own")
    if ids.n_unique() < len(ids):
        raise InputError(
            f"the documents hold id {shown(ids.filter(ids.is_duplicated())[0])} twice; give every one once"
        )
    limits = limits or ChunkLimits()
    items = documents["item_id"].to_list() if "item_id" in documents.columns else [None] * documents.height
    made: list[Passage] = []
    for source, text, item_id in zip(ids.to_list(), documents["text"].cast(pl.String).to_list(), items, strict=True):
        made += _cut(text or "", source, item_id, limits, count, "")
    return made


def read_documents(path: Path | str) -> pl.DataFrame:
    """A table of documents from ``.parquet`` or ``.jsonl``.

    Raises:
        InputError: the file is missing, of another kind or damaged.
    """
    path = Path(path)
    readers: dict[str, Callable[..., pl.DataFrame]] = {".parquet": _read_parquet, ".jsonl": _read_lines}
    if path.suffix not in readers:
        raise InputError(f"{path} is neither .parquet nor .jsonl; give documents as one of these")
    if not path.is_file():
        raise InputError(f"{path} is missing; give a file with the columns id and text")
    try:
        return readers[path.suffix](path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); write it again") from None


def _read_parquet(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path, glob=False)


def _read_lines(path: Path) -> pl.DataFrame:
    """Columns are those of all lines: by itself polars looks at 100 and drops what comes up later only."""
    with path.open("rb") as file:  # a name would be taken for a pattern of names
        return pl.read_ndjson(file, infer_schema_length=None)


def _words_of(column: pl.Series) -> list[str | None]:
    try:
        if isinstance(column.dtype, (pl.List, pl.Array)):
            joined: list[str | None] = column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True).to_list()
            return joined
        return column.cast(pl.String, strict=False).to_list()
    except pl.exceptions.PolarsError:
        raise InputError(f"the column {column.name!r} of the items holds {shown(column.dtype)}, no words") from None


def _cut(
    text: str, source: str, item_id: Any, limits: ChunkLimits, count: Callable[[str], int], title: str
) -> list[Passage]:
    """Pieces as passages, each text once; a later one begins with the title, without which it says nothing."""
    made: dict[str, Passage] = {}
    for number, chunk in enumerate(chunks(text, limits, count)):
        words, tokens = chunk.text, chunk.tokens
        if number and title and title not in words:
            words = f"{title}: {words}"
            tokens = count(words)
        passage = Passage.of(words, source, item_id, tokens)
        made.setdefault(passage.id, passage)
    return list(made.values())
