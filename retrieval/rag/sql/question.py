"""A question put into SQL by a language model, run, and mended once where it fails."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recsys.retrieval.rag.sql.checked_query import SqlError
from recsys.retrieval.rag.sql.column_values import ColumnValues, ValueMatch
from recsys.retrieval.rag.sql.query_result import QueryResult
from recsys.retrieval.rag.sql.tables import UserTables
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.lm.protocol import Chat, LanguageModel
from recsys.retrieval.rerank.lm.usage import Usage
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["SqlStep", "TableAnswer", "answer_from_tables", "sql_chat", "sql_prompt"]

_PLAIN_NAME = re.compile(r"[a-z_]\w*", re.ASCII)
_FENCE = re.compile(r"```(?:sql)?", re.IGNORECASE)
_STARTS = re.compile(r"\b(?:SELECT|WITH)\b", re.IGNORECASE)
_QUESTION_CHARS = 500
_ERROR_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlStep:
    """One round: a query and what became of it."""

    sql: str
    """As the model wrote it."""
    outcome: Literal["rows", "refused", "no answer"]
    error: str | None = None
    """Why it was refused or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableAnswer:
    """What the tables say, or that they were not asked."""

    result: QueryResult | None
    """None where no query worked."""
    steps: tuple[SqlStep, ...]
    values: tuple[ValueMatch, ...] = ()
    """Values of columns that were offered to the model."""
    usage: Usage = Usage()
    prompts: tuple[Chat, ...] = ()
    """What the model was told, round by round."""

    @property
    def repaired(self) -> bool:
        """The first query failed and a later one worked."""
        return self.result is not None and len(self.steps) > 1

    @property
    def error(self) -> str | None:
        """Why there are no rows; None where there are."""
        return None if self.result is not None else (self.steps[-1].error if self.steps else "no query was written")


def sql_prompt() -> Prompt:
    """The wording of this package."""
    return Prompt.load(Path(__file__).parents[1] / "prompts" / "sql.yaml")


async def answer_from_tables(
    question: str,
    tables: UserTables,
    values: ColumnValues,
    lm: LanguageModel,
    *,
    earlier: Sequence[str] = (),
    must_read: Sequence[str] = (),
    rounds: int = 2,
    prompt: Prompt | None = None,
    deadline: float | None = None,
) -> TableAnswer:
    """Ask a language model for a query, run it, and tell it once what was wrong.

    Nothing that the model writes makes this fail: a query that is refused or fails is a step with its error.

    Args:
        question: in words; data to the model.
        tables: of the user who asks.
        values: of the items' columns.
        lm: writes the query.
        earlier: questions before this one in the conversation, oldest first.
        must_read: tables that a query must name to be about the question.
        rounds: queries at most, the first included.
        prompt: another wording with the same placeholders.
        deadline: a reading of :func:`time.monotonic`.
    """
    prompt = prompt or sql_prompt()
    most = prompt.option("max_tokens", 200)
    matches = tuple(values.match(question, most=3))
    steps, chats, usage, failed, error = list[SqlStep](), list[Chat](), Usage(), "", ""
    for _ in range(max(1, rounds)):
        if deadline is not None and time.monotonic() >= deadline:
            steps.append(SqlStep(sql="", outcome="no answer", error="the deadline passed"))
            break
        chat = sql_chat(prompt, question, tables, values, matches, earlier=earlier, failed=failed, error=error)
        chats.append(chat)
        (answer,) = await lm.generate(
            [chat],
            max_tokens=most,
            stop=prompt.option("stop", list[str]()),
            prefill=prompt.prefill,
            deadline=deadline,
        )
        usage += answer.usage
        if answer.finish in ("error", "deadline"):
            reason = answer.error or "the deadline passed"
            steps.append(SqlStep(sql="", outcome="no answer", error=as_data(reason, _ERROR_CHARS)))
            break
        sql = _query_in(prompt.prefill, answer.text)
        if answer.finish == "length" and answer.text.count("```") < 2:  # what is left of it may ask something else
            failed, error = sql, f"the query was not written to its end in {most} tokens; write a shorter one"
            steps.append(SqlStep(sql=sql, outcome="refused", error=error))
            continue
        try:
            result = await asyncio.to_thread(tables.query, sql, must_read=must_read, deadline=deadline)
            if not result.tables:  # what it says is the model's own
                raise SqlError(f"the query reads no table; select from {' or '.join(tables.tables)}")
        except SqlError as refusal:
            failed, error = sql, str(refusal)
            steps.append(SqlStep(sql=sql, outcome="refused", error=error))
            continue
        steps.append(SqlStep(sql=sql, outcome="rows"))
        return TableAnswer(result=result, steps=tuple(steps), values=matches, usage=usage, prompts=tuple(chats))
    return TableAnswer(result=None, steps=tuple(steps), values=matches, usage=usage, prompts=tuple(chats))


def sql_chat(
    prompt: Prompt,
    question: str,
    tables: UserTables,
    values: ColumnValues,
    matches: Sequence[ValueMatch],
    *,
    earlier: Sequence[str] = (),
    failed: str = "",
    error: str = "",
) -> Chat:
    """What the model is told."""
    lines = []
    for table, columns in tables.tables.items():
        for column in columns:
            known = values.columns.get(column.name) if table == "items" else None
            such = ""
            if known is not None and not known.names_items:
                several = "lists several, " if known.separators else ""
                such = f" ({several}such as {as_data(', '.join(known.values[:3]), 60)})"
            lines.append(f"{table}.{_quoted(column.name)} {column.kind}{such}")
    offered = [f"{_quoted(match.column)}: {as_data(match.value, 80)}" for match in matches[:12]]
    return prompt.render(
        tables="\n".join(lines),
        values="\n".join(offered) or "none",
        earlier=as_data("; ".join(earlier[-3:]), _QUESTION_CHARS),
        question=as_data(question, _QUESTION_CHARS),
        failed=as_data(failed, _QUESTION_CHARS),
        error=as_data(error, _ERROR_CHARS),
    )


def _quoted(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else f'"{as_data(name, 60)}"'


def _query_in(prefill: str, text: str) -> str:
    """The statement in an answer: without fences and words around it.

    A model goes on from the prefilled beginning, or, behind some servers, begins anew.

    >>> _query_in("SELECT", " count(*) FROM items;"), _query_in("SELECT", "```sql\\nSELECT 1;\\n``` It counts.")
    ('SELECT count(*) FROM items', 'SELECT 1')
    """
    if "```" in text:
        fenced = [part for part in _FENCE.split(text)[1:] if _STARTS.search(part)]
        text = fenced[0] if fenced else text.replace("```", " ")
        found = _STARTS.search(text)
        text = text[found.start() :] if found else prefill + text
    elif not _STARTS.match(text.lstrip()):
        text = prefill + text
    return text.strip().rstrip(";").strip()
