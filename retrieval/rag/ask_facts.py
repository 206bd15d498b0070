"""Facts from the items and the user's own events: by queries of a language model, or by a few plain ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from recsys.events import Event
from recsys.retrieval.page import Page
from recsys.retrieval.rag.ask_answer import AskAnswer, Turn
from recsys.retrieval.rag.ask_catalogue import AskCatalogue
from recsys.retrieval.rag.ask_words import WordFilters, filters_in, left_words
from recsys.retrieval.rag.ask_work import AskWork
from recsys.retrieval.rag.sql.checked_query import SqlError
from recsys.retrieval.rag.sql.limits import SqlLimits
from recsys.retrieval.rag.sql.query_result import QueryResult
from recsys.retrieval.rag.sql.question import SqlStep, TableAnswer, answer_from_tables
from recsys.retrieval.rag.sql.tables import UserTables
from recsys.retrieval.rag.words import words
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.lm.protocol import LanguageModel
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["answer_facts", "query_by_rules", "table_text"]

_COUNT = re.compile(r"\b(?:how many|how often|count|number of)\b", re.IGNORECASE)
_MINE = re.compile(r"\b(?:i|my|mine|me)\b", re.IGNORECASE)
_FIRST = re.compile(r"\b(?:first|oldest|earliest)\b", re.IGNORECASE)
_HARDER = re.compile(
    r"\b(?:most|least|average|mean|median|total|sum|favou?rite|best|worst|highest|lowest|per|each|than|between)\b",
    re.IGNORECASE,
)
"""What plain queries cannot answer."""
_NOT_DONE = re.compile(
    r"\b(?:did|have|had|do|was)(?:n['’]t|\s+(?:i\s+)?(?:not|never))\b|\bi\s+(?:never|not)\b", re.IGNORECASE
)
"""Nor what is asked of events that did not happen."""
_SAID_OF_FACTS = frozenset(
    "many much often long count number tell list item product book toy game movie film song title thing total time "
    "kind type last first latest oldest earliest newest recent recently history event did done own owned previous "
    "previously far currently there exist available sell sold offer stock catalogue catalog shop store "
    "bought buy purchased purchase read seen saw watched played used chosen chose ordered got gotten taken took".split()
)
"""Words of such questions that choose no rows."""
_OF_ITEMS = re.compile(r"\b(?:published|released|made|written|printed)\b|[’']?\ds\b", re.IGNORECASE)
"""Behind these a year is the items', and otherwise perhaps that of the events."""
_BUYING = frozenset({"buy", "bought", "purchase", "purchased", "order", "ordered"})
_MOST_EVENTS = 10


async def answer_facts(
    work: AskWork,
    catalogue: AskCatalogue,
    events: Sequence[Event],
    lm: LanguageModel | None,
    *,
    limits: SqlLimits,
    turns: Sequence[Turn] = (),
    prompt: Prompt | None = None,
) -> AskAnswer:
    """Put the question to tables that hold the items and these events, and nobody else's.

    Args:
        work: the question.
        catalogue: the items.
        events: all of the user who asks, oldest first.
        lm: writes queries; None, or where none of its queries works: plain ones for counts and the user's events.
        limits: of every query.
        turns: of the conversation so far.
        prompt: another wording.

    Raises:
        InputError: DuckDB is not installed.
    """
    if not events:
        work.notes.append("no event of this user is known")
    with work.stage("tables"):
        tables = await asyncio.to_thread(lambda: catalogue.database.open(events, limits))
    with tables:
        table: TableAnswer | None = None
        if lm is not None and not work.late():
            earlier = [turn.question for turn in turns]
            with work.stage("sql"):
                table = await answer_from_tables(
                    work.question, tables, catalogue.columns.values, lm,
                    earlier=earlier, must_read=("history",) if _is_mine(work.question) else (), prompt=prompt,
                    deadline=work.deadline,
                )  # fmt: skip
            work.usage += table.usage
            work.prompts += table.prompts
            work.count("refused_queries", sum(step.outcome == "refused" for step in table.steps))
            if any(step.outcome == "no answer" for step in table.steps):
                work.count("failed")
                work.complete = False
        if table is None or table.result is None:
            if table is not None:
                work.notes.append(f"the language model wrote no query that works: {table.error}")
            with work.stage("words"):
                table = await _by_rules(work, catalogue, tables, () if table is None else table.steps)
    return AskAnswer(
        kind="facts",
        text=table_text(table.result),
        page=Page((), 0, version=catalogue.version),
        table=table,
        turn=Turn(question=work.question, filters=turns[-1].filters if turns else ()),
        **work.gathered(),
    )


async def _by_rules(
    work: AskWork, catalogue: AskCatalogue, tables: UserTables, steps: tuple[SqlStep, ...]
) -> TableAnswer:
    """What plain queries say; ``steps`` are those that did not work."""
    read = await asyncio.to_thread(filters_in, work.question, catalogue.columns)
    condition = catalogue.columns.sql(read.filters) if read.filters else ""
    work.notes += read.unread_notes()
    unknown = _not_understood(work.question, read, catalogue)
    sql = None if unknown or read.unread else query_by_rules(work.question, condition, tables, catalogue.actions)
    if unknown:
        work.notes.append(f"{unknown} was not understood, and without it the tables would be asked something else")
    if sql is None:
        work.notes.append("without a query of a language model only counts and one's own events can be asked for")
        return TableAnswer(result=None, steps=steps)
    try:
        result = await asyncio.to_thread(tables.query, sql, deadline=work.deadline)
    except SqlError as error:
        return TableAnswer(result=None, steps=(*steps, SqlStep(sql=sql, outcome="refused", error=str(error))))
    return TableAnswer(result=result, steps=(*steps, SqlStep(sql=sql, outcome="rows")))


def _not_understood(question: str, read: WordFilters, catalogue: AskCatalogue) -> str:
    """What of a question is in no condition, in words; a count without it would count something else."""
    mine, columns = _is_mine(question), catalogue.columns
    if read.notes:
        return read.notes[0].partition("”")[0] + "”"
    for one in read.filters:
        by_year = one.column in columns.numbers and (
            columns.numbers[one.column].is_date or {"year", "date"} & set(one.column.lower().split("_"))
        )
        if mine and by_year and not _OF_ITEMS.search(question):
            return f"“{as_data(one.words, 60)}”"
    own = {word for name in columns.items.columns for word in words(name.replace("_", " "))}
    own |= {form for name in catalogue.actions for form in _forms(name)} if mine else set()
    said = {word for one in read.filters for part in one.words.split(", ") for word in words(part)}
    for word in left_words(question, read.filters, read.unread):
        if word not in _SAID_OF_FACTS | own | said:
            return f"“{as_data(word, 60)}”"
    return ""


def query_by_rules(question: str, condition: str, tables: UserTables, actions: Sequence[str] = ()) -> str | None:
    """A query for a count, or for the user's own events; None for what rules do not understand.

    Args:
        question: in words.
        condition: on the items, as SQL; empty for none.
        tables: of the user.
        actions: that events may have; one that the question names must be there.
    """
    mine, among = _is_mine(question), f" WHERE {condition}" if condition else ""
    if _HARDER.search(question) or (mine and _NOT_DONE.search(question)):
        return None
    conditions = [f"item_id IN (SELECT item_id FROM items{among})"] if condition else []
    if named := _named_actions(question, actions):
        conditions.append("(" + " OR ".join(_has_action(name) for name in named) + ")")
    within = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    if _COUNT.search(question):
        if not mine:
            return f"SELECT count(*) AS items FROM items{among}"
        return f"SELECT count(*) AS events, count(DISTINCT item_id) AS items FROM history{within}"
    if not mine:
        return None
    names = {column.name for column in tables.tables["history"]}
    wanted = [name for name in ("title", "item_id", "actions", "happened_at") if name in names]
    order = "ASC" if _FIRST.search(question) else "DESC"
    return f"SELECT {', '.join(wanted)} FROM history{within} ORDER BY place {order} LIMIT {_MOST_EVENTS}"


def _named_actions(question: str, actions: Sequence[str]) -> list[str]:
    """Actions that a question about one's own events names: "how many did I like?"

    >>> _named_actions("How many trains have I liked?", ("click", "like"))
    ['like']
    """
    said, named = set(re.findall(r"[^\W_]+", question.casefold())), list[str]()
    for name in actions:
        if said & _forms(name):
            named.append(name)
    return named


def _forms(action: str) -> frozenset[str]:
    """Words that name it."""
    folded = action.casefold()
    return _BUYING if folded in _BUYING else frozenset({folded, f"{folded}d", f"{folded}ed"})


def _has_action(name: str) -> str:
    """As SQL; an event's actions are joined by ``+``."""
    one = name.replace("'", "''")
    return (
        f"actions = '{one}' OR starts_with(actions, '{one}+') OR ends_with(actions, '+{one}') "
        f"OR contains(actions, '+{one}+')"
    )


def _is_mine(question: str) -> bool:
    """Whether it is about the user's own events; "me" in "tell me" is about nobody's."""
    plain = re.sub(r"\b(?:tell|show|give) me\b|\b(?:can|could|should|would) i\b", " ", question, flags=re.IGNORECASE)
    return _MINE.search(plain) is not None


def table_text(result: QueryResult | None) -> str:
    """Rows as an answer; nothing in it is a model's wording."""
    if result is None:
        return "The tables gave no answer to that."
    if not result.rows and result.truncated:
        return "The tables hold an answer that is too long to be shown."
    if not result.rows:
        return "The tables hold nothing of that."
    if len(result.rows) == 1 and not result.truncated:
        lines = result.as_text().split("\n")
        if len(result.columns) == 1:
            return f"{result.columns[0]}: {lines[1]}"
    return result.as_text()
