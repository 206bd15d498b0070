"""What a question in words returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recsys.retrieval.page import Page
from recsys.retrieval.rag.ask_filter import Filter
from recsys.retrieval.rag.sql.question import TableAnswer
from recsys.retrieval.rerank.lm.protocol import Chat
from recsys.retrieval.rerank.lm.usage import Usage

__all__ = ["AskAnswer", "AskFaults", "AskedItem", "Turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedItem:
    """One item of the answer."""

    number: int
    """By which the text cites it, from 1."""
    item_id: Any
    """The caller's id."""
    title: str
    """As the catalogue has it; its id where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a conversation remembers of one question."""

    question: str
    filters: tuple[Filter, ...] = ()
    """As they were applied, earlier ones that still counted among them."""
    item_ids: tuple[Any, ...] = ()
    """Of the items that were shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFaults:
    """What was wrong with answers of the language model and of a reranker; all of it was mended or left out."""

    malformed: int = 0
    """Answers without readable filters: rules decided instead."""
    dropped_filters: int = 0
    """Parts of filters that the items or the question know nothing of."""
    unused: int = 0
    """Readable answers without a single filter that could be used, where rules found some: those decided."""
    dropped_sentences: int = 0
    unsupported_sentences: int = 0
    """Shown, but their words are less than half in what was known of the items."""
    refused_queries: int = 0
    rerank_missing: int = 0
    """Items that an order left out; they keep their earlier place, as in
    :class:`recsys.retrieval.rerank.result.Faults`."""
    rerank_repeated: int = 0
    rerank_foreign: int = 0
    """Labels or ids that are no item's of the page."""
    rerank_malformed: int = 0
    """Answers without any readable order."""
    failed: int = 0
    """Calls without an answer, of the language model or of a reranker: errors, a passed deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAnswer:
    """Recommended items, or a table, with what was understood."""

    kind: Literal["items", "facts"]
    text: str
    """To be shown: titles and values come from the catalogue and the tables, sentences of a model are checked."""
    page: Page
    """The recommendation; without hits where facts were asked for."""
    items: tuple[AskedItem, ...] = ()
    """Of the page, in its order, numbered as the text cites them."""
    filters: tuple[Filter, ...] = ()
    """As they were applied."""
    condition: str = ""
    """The same as SQL over the items."""
    sentences: tuple[str, ...] = ()
    """Of the text: what a model wrote."""
    table: TableAnswer | None = None
    """Where facts were asked for: the queries, what became of them, the rows."""
    usage: Usage = field(default_factory=Usage)
    faults: AskFaults = field(default_factory=AskFaults)
    notes: tuple[str, ...] = ()
    """Sentences about this answer: what was left out and why."""
    complete: bool = True
    """False where the deadline passed or calls failed, so that a part of the answer was made without the model."""
    milliseconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """By stage."""
    prompts: tuple[Chat, ...] = field(default=(), repr=False, compare=False)
    """Everything that the language model was told."""
    turn: Turn = field(default_factory=lambda: Turn(question=""))
    """To give with the next question of the conversation."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for a file, the prompts left out."""
        probabilities = {hit.item_id: hit.actions for hit in self.page}
        answer: dict[str, Any] = {
            "kind": self.kind,
            "text": self.text,
            "items": [
                {
                    "number": item.number,
                    "item_id": item.item_id,
                    "title": item.title,
                    "actions": probabilities.get(item.item_id, {}),
                }
                for item in self.items
            ],
            "filters": [{"filter": str(one), "column": one.column, "source": one.source} for one in self.filters],
            "condition": self.condition,
            "usage": {name: getattr(self.usage, name) for name in self.usage.__slots__},
            "faults": {name: getattr(self.faults, name) for name in self.faults.__slots__},
            "notes": list(self.notes),
            "complete": self.complete,
            "milliseconds": {name: round(value, 1) for name, value in self.milliseconds.items()},
        }
        if self.table is not None:
            result = self.table.result
            answer["queries"] = [
                {"sql": step.sql, "outcome": step.outcome, "error": step.error} for step in self.table.steps
            ]
            if result is not None:
                answer["table"] = {
                    "columns": list(result.columns),
                    "rows": [list(row) for row in result.rows],
                    "truncated": result.truncated,
                }
        return answer
