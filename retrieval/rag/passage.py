"""A piece of text that answers may be built on, and what a search says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FoundPassage", "Passage", "estimated_tokens", "passage_id", "plain_text", "relevance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text with its origin. Its words are data: who puts them into a prompt escapes them."""

    id: str
    """Stable: equal for equal source, item and text, whatever else the store holds."""
    text: str
    source: str
    """``item`` for the item table, else the document it was cut from."""
    item_id: Any = None
    """The caller's id of the item that it is about; None for a text about no single item."""
    tokens: int = 0
    """What it costs in a prompt, by the counter that it was cut with."""

    @classmethod
    def of(cls, text: str, source: str, item_id: Any = None, tokens: int | None = None) -> Passage:
        """With the id that belongs to the content; ``tokens`` None = :func:`estimated_tokens`."""
        text, source = plain_text(text), plain_text(source)
        count = estimated_tokens(text) if tokens is None else tokens
        return cls(id=passage_id(text, source, item_id), text=text, source=source, item_id=item_id, tokens=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPassage:
    """A hit of a search."""

    passage: Passage
    score: float
    """Of the fused ranks; comparable within one search only."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Retriever -> place in its list, from 1; without those that did not find it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Retriever -> its own score, in its own unit."""


def plain_text(text: str) -> str:
    """The text as any file and tokenizer takes it: halves of surrogate pairs become U+FFFD.

    >>> plain_text("a\\ud800b") == "a\ufffdb"
    True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def passage_id(text: str, source: str, item_id: Any = None) -> str:
    """16 hex digits of the SHA-256 of what the passage says and where it is from.

    >>> passage_id("A red train.", "item", 7) == passage_id("A red train.", "item", 7)
    True
    >>> passage_id("A red train.", "item", 7) == passage_id("A red train.", "item", "7")
    False
    """
    kind = "none" if item_id is None else "number" if isinstance(item_id, int) else "text"
    whole = json.dumps([source, kind, str(item_id), text], ensure_ascii=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def estimated_tokens(text: str) -> int:
    """Tokens that a language model of any family hardly exceeds: one for three bytes of UTF-8, rounded up.

    English has about 4.3 bytes a token, Chinese about 3.

    >>> estimated_tokens("A red train."), estimated_tokens("")
    (4, 0)
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // 3)


def relevance(found: Sequence[FoundPassage]) -> list[float]:
    """How well each passage fits the question, from 0 to 1: its score over the best one of the same search, averaged
    over the retrievers that searched (0 where one did not find it).

    >>> p = Passage.of("text", "item")
    >>> hits = [FoundPassage(passage=p, score=1.0, scores={"bm25": 8.0, "dense": 0.5}),
    ...         FoundPassage(passage=p, score=0.9, scores={"bm25": 4.0})]
    >>> relevance(hits)
    [1.0, 0.25]
    """
    best: dict[str, float] = {}
    for hit in found:
        for name, score in hit.scores.items():
            best[name] = max(best.get(name, 0.0), score)
    names = [name for name, score in best.items() if score > 0]
    if not names:  # passages that were not searched for, such as those of a given list
        return [1.0] * len(found)
    return [sum(max(0.0, hit.scores.get(name, 0.0)) / best[name] for name in names) / len(names) for hit in found]
