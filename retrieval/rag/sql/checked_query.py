"""Is a text one query that only reads the tables it may read?

The text is parsed by DuckDB itself; what its parser found is walked, and only known words pass. The query that runs is
written anew from what was walked, so that nothing runs that was not looked at: comments, further statements and odd
spellings are gone by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from recsys.errors import shown
from recsys.retrieval.rag.sql.limits import SqlLimits
from recsys.retrieval.rag.sql.words import (
    AGGREGATES_OF_TEXT,
    CLASSES,
    CONCATENATIONS,
    FORMATS,
    FUNCTIONS,
    GATHERED,
    NODES,
    OF_MANY,
    OF_THE_SESSION,
    PATTERNS,
    TYPES,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["CheckedQuery", "SqlError", "checked_query"]

_MOST_GROWTH = 32
"""By how much a query may lengthen a text by joining it with itself."""
_LONGEST_PATTERN = 300
_LONGEST_FORMAT = 40
_PLAIN_NAME = re.compile(r"(?!duckdb_|pg_|sqlite_|pragma_|information_schema)[^\W\d]\w{0,63}", re.IGNORECASE)
_SPOKEN = {"INSERT_QUERY_NODE": "INSERT", "UPDATE_QUERY_NODE": "UPDATE", "DELETE_QUERY_NODE": "DELETE",
           "RECURSIVE_CTE_NODE": "recursion", "SHOW_REF": "SHOW, DESCRIBE and SUMMARIZE", "PARAMETER": "parameters",
           "LAMBDA": "lambdas"}  # fmt: skip


class SqlError(ValueError):
    """Why a query is refused or failed: one line for whoever wrote the query, a language model included."""


@dataclass(frozen=True, slots=True)
class CheckedQuery:
    """What may run."""

    sql: str
    """Written anew from what the parser found."""
    tables: frozenset[str]
    """Tables that it reads."""


def checked_query(
    connection: DuckDBPyConnection, sql: str, tables: Mapping[str, Collection[str]], limits: SqlLimits
) -> CheckedQuery:
    """The query as it may run.

    Args:
        connection: parses; nothing is run.
        sql: one SELECT or WITH statement.
        tables: columns by table.
        limits: of the length of the text and the number of tables.

    Raises:
        SqlError: it is no query, more than one, or holds a word that is not allowed; says which.
    """
    if not isinstance(sql, str) or not sql.strip():
        raise SqlError("there is no query; write one SELECT statement")
    if len(sql) > limits.query_chars:
        raise SqlError(f"the query has {len(sql)} characters, more than {limits.query_chars}; write a shorter one")
    if "\x00" in sql or not sql.isascii() and not _is_text(sql):
        raise SqlError("the query holds characters that no text can hold")
    written = _parsed(connection, sql)
    try:
        tree = json.loads(written)
    except RecursionError:
        raise SqlError("the query is nested too deeply; write a simpler one") from None
    if tree.get("error"):
        if "Only SELECT" in str(tree.get("error_message")):
            raise SqlError("only one SELECT or WITH statement is allowed, and nothing that writes or sets")
        raise SqlError(_line(f"{tree.get('error_message')}"))
    statements = tree.get("statements") or []
    if len(statements) != 1:
        raise SqlError(f"there are {len(statements)} statements; write exactly one")
    named = _check(statements, tables, limits)
    row = connection.execute("SELECT json_deserialize_sql(?::JSON)", [written]).fetchone()
    assert row is not None
    return CheckedQuery(str(row[0]), named)


def _parsed(connection: DuckDBPyConnection, sql: str) -> str:
    import duckdb

    try:
        row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    except duckdb.Error as error:
        raise SqlError(_line(str(error))) from None
    assert row is not None
    return str(row[0])


def _is_text(sql: str) -> bool:
    try:
        sql.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _line(text: str) -> str:
    """An error of DuckDB as one line without the picture of the query.

    >>> _line("Binder Error: no column x\\n\\nLINE 1: SELECT x\\n               ^")
    'Binder Error: no column x'
    """
    return " ".join(text.split("\nLINE ")[0].split())[:300]


def _walk(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _check(statements: list[Any], tables: Mapping[str, Collection[str]], limits: SqlLimits) -> frozenset[str]:
    nodes = list(_walk(statements))
    named = {str(entry["key"]).lower() for node in nodes for entry in (node.get("cte_map") or {}).get("map") or ()}
    for name in sorted(named):
        if not _PLAIN_NAME.fullmatch(name):
            raise SqlError(f"WITH {shown(name)}: choose a plain name of letters, digits and _")
        if name in tables:  # or a query would seem to read what it does not
            raise SqlError(f"WITH {shown(name)}: there is a table of that name; choose another")
    shown_alone = {id(column) for column in _columns_of(statements[0].get("node") or {})}
    num_tables, growth, gathers, read = 0, 1, False, set[str]()
    for node in nodes:
        kind = node.get("type")
        if "class" in node:
            if node["class"] not in CLASSES:
                raise SqlError(f"{_SPOKEN.get(str(node['class']), node['class'])} cannot be used here")
        elif isinstance(kind, str) and kind not in NODES:
            raise SqlError(f"{_SPOKEN.get(kind, kind)} cannot be used here; write a plain SELECT")
        if node.get("sample") or node.get("at_clause"):
            raise SqlError("samples and versions of tables cannot be used here")
        if kind == "BASE_TABLE":
            num_tables += 1
            read.add(_check_table(node, named, tables))
        elif kind == "TABLE_FUNCTION":
            function = str((node.get("function") or {}).get("function_name", "")).lower()
            if function != "unnest":
                raise SqlError(f"{function}() cannot be used as a table; there are {', '.join(tables)}")
        if "function_name" in node:
            name = _check_function(node)
            if name in CONCATENATIONS:
                growth *= max(2, len(_arguments(node)))
            gathers |= name in AGGREGATES_OF_TEXT
            if name in GATHERED and id(node) not in shown_alone:
                raise SqlError(f"{name}() can only be a column of the result by itself; count or filter rows instead")
        elif node.get("class") == "TYPE":
            _check_type(node)
        elif node.get("class") == "COLUMN_REF":
            _check_column(node)
    if num_tables > limits.tables:
        raise SqlError(f"the query names tables {num_tables} times, more than {limits.tables}; write a simpler one")
    if growth > _MOST_GROWTH or (gathers and growth > 1):
        raise SqlError("the query joins texts too often; select the columns instead")
    return frozenset(read & set(tables))


def _columns_of(query: dict[str, Any]) -> list[Any]:
    """Of the result, where the query is no union of several."""
    while query.get("type") == "CTE_NODE":
        query = query.get("child") or {}
    columns: list[Any] = query.get("select_list") or []
    return columns


def _check_table(node: dict[str, Any], named: set[str], tables: Mapping[str, Collection[str]]) -> str:
    name = str(node.get("table_name", "")).lower()
    if node.get("catalog_name") or node.get("schema_name"):
        raise SqlError(f"{shown(name)}: name tables without a schema; there are {', '.join(tables)}")
    if name not in named and name not in tables:
        raise SqlError(f"there is no table {shown(name)}; there are {', '.join(tables)}")
    return name


def _check_function(node: dict[str, Any]) -> str:
    name = str(node["function_name"]).lower()
    if node.get("schema") or node.get("catalog") or name not in FUNCTIONS:
        close = get_close_matches(name, FUNCTIONS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SqlError(f"the function {shown(name)} cannot be used here{hint}")
    if len(_arguments(node)) > OF_MANY.get(name, len(_arguments(node))):
        raise SqlError(f"{name}() takes {OF_MANY[name]} here; write ORDER BY and LIMIT for more than one row")
    if name in PATTERNS:
        pattern = _arguments(node)[1:2]
        literal = _literal(pattern[0]) if pattern else None
        if literal is None or len(literal) > _LONGEST_PATTERN or "{" in literal:
            raise SqlError(f"a pattern must be a plain text of at most {_LONGEST_PATTERN} characters without {{")
    if name in FORMATS:
        given = [text for one in _arguments(node) if (text := _literal(one)) is not None]
        if len(given) != 1 or len(given[0]) > _LONGEST_FORMAT:
            raise SqlError(f"a format of dates must be a plain text of at most {_LONGEST_FORMAT} characters")
    if name == "list_value" and not all(argument.get("class") == "CONSTANT" for argument in _arguments(node)):
        raise SqlError("a list may only hold constants")
    return name


def _arguments(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a function; ``children`` before DuckDB 2."""
    given = node.get("arguments") or node.get("children") or []
    return [one["expression"] if isinstance(one.get("expression"), dict) else one for one in given]


def _literal(node: dict[str, Any]) -> str | None:
    if node.get("class") != "CONSTANT":
        return None
    text = (node.get("literal") or {}).get("text", (node.get("value") or {}).get("value"))
    return text if isinstance(text, str) else None


def _check_type(node: dict[str, Any]) -> None:
    name = str(node.get("type_name", "")).upper()
    if node.get("schema") or node.get("catalog") or name not in TYPES:
        raise SqlError(f"the type {shown(name)} cannot be used here")


def _check_column(node: dict[str, Any]) -> None:
    names = node.get("column_names") or []
    if len(names) == 1 and str(names[0]).lower() in OF_THE_SESSION:
        raise SqlError(f"there is no column {shown(names[0])}")
