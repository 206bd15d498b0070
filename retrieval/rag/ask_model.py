"""Filters as a language model reads them off a question, checked against the columns and the question itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from recsys.errors import shown
from recsys.retrieval.rag.ask_filter import Filter, FilterColumns
from recsys.retrieval.rag.ask_numbers import bounded, plain_number
from recsys.retrieval.rag.sql.column_values import ValueMatch
from recsys.retrieval.rerank.as_data import as_data
from recsys.retrieval.rerank.lm.protocol import Chat
from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["ReadFilters", "filters_chat", "read_filters", "united", "without_denied"]

_MOST_FILTERS = 12
_MOST_VALUES = 20
_MOST_COLUMNS = 40
_MOST_BEGINNINGS = 20
"""Brackets of an answer at which a list is looked for."""
_QUESTION_CHARS = 500
_KEYS = {"column", "is", "not", "at_least", "at_most"}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFilters:
    """What an answer held."""

    filters: tuple[Filter, ...] = ()
    dropped: tuple[str, ...] = ()
    """Sentences about parts that were left out, and why."""
    malformed: bool = False
    """No list of filters could be read."""


def filters_chat(
    prompt: Prompt, question: str, columns: FilterColumns, matches: Sequence[ValueMatch], earlier: Sequence[str] = ()
) -> Chat:
    """What the model is told."""
    lines = list[str]()
    for name in columns.items.columns:
        text = columns.texts.get(name)
        number = columns.numbers.get(name)
        if text is not None and not text.names_items:
            lines.append(f"{as_data(name, 60)}: such as {as_data(', '.join(text.values[:5]), 80)}")
        elif number is not None and not number.named_like_id:
            kind = "years of dates" if number.is_date else "numbers"
            lines.append(f"{as_data(name, 60)}: {kind} from {number.low:g} to {number.high:g}")
        elif name in columns.flags:
            lines.append(f"{as_data(name, 60)}: true or false")
    grouping = [match for match in matches if not columns.texts[match.column].names_items]
    offered = [f"{as_data(match.column, 60)}: {as_data(match.value, 80)}" for match in grouping]
    return prompt.render(
        columns="\n".join(lines[:_MOST_COLUMNS]),
        values="\n".join(offered[:12]) or "none",
        earlier=as_data("; ".join(earlier[-3:]), _QUESTION_CHARS),
        question=as_data(question, _QUESTION_CHARS),
    )


def read_filters(
    text: str, question: str, columns: FilterColumns, matches: Sequence[ValueMatch], *, grounded: bool = True
) -> ReadFilters:
    """Filters of an answer. No text makes this fail.

    Columns and values that the items do not have are left out and named; so is, unless ``grounded`` is False, what
    nothing in the question says: small models like to repeat examples.

    Args:
        text: the answer, its prefilled beginning included.
        question: what was asked, with earlier questions where they count.
        columns: of the items.
        matches: values that the question may mean.
        grounded: False believes a model that knows more words for a thing than its letters.
    """
    given = _list_in(text)
    if given is None:
        return ReadFilters(malformed=True)
    found, dropped = list[Filter](), list[str]()
    for one in given[:_MOST_FILTERS]:
        if not isinstance(one, dict) or not isinstance(one.get("column"), str):
            dropped.append("a filter without a column was left out")
            continue
        name = _own_name(one["column"], columns)
        if name is None:
            dropped.append(f"the items have no column {_said(one['column'])}, that filter was left out")
            continue
        for key in one:
            if key not in _KEYS:
                dropped.append(f"{_said(key)} says nothing of a filter and was left out")
        for key in ("is", "not"):
            if one.get(key) is not None:
                _take_values(found, dropped, name, one[key], key == "not", question, columns, matches, grounded)
        _take_bounds(found, dropped, name, one, question, columns, grounded)
    dropped += ["more filters than can be meant were left out"] * (len(given) > _MOST_FILTERS)
    return ReadFilters(filters=tuple(found), dropped=tuple(dict.fromkeys(dropped)))


def without_denied(read: ReadFilters, by_rule: Sequence[Filter]) -> ReadFilters:
    """The same without values that the question excludes in plain words and the model asks for, which are named."""
    denied = {
        (one.column, value) for one in by_rule if one.negate and not one.within and not one.together
        for value in one.values
    }  # fmt: skip
    kept, dropped = list[Filter](), list(read.dropped)
    for one in read.filters:
        asked = [value for value in one.values if one.negate or (one.column, value) not in denied]
        dropped += [
            f"the question excludes {_said(value)}, it was not asked for" for value in one.values if value not in asked
        ]
        if asked or not one.values:
            kept.append(replace(one, values=tuple(asked)))
    return replace(read, filters=tuple(kept), dropped=tuple(dict.fromkeys(dropped)))


def united(by_model: Sequence[Filter], by_rule: Sequence[Filter]) -> list[Filter]:
    """The model's filters, and the rules': of columns and numbers that the model does not speak of, and all that the
    question excludes in plain words."""
    columns = {column for one in by_model for column in one.columns()}
    numbers = {bound for one in by_model for bound in (one.at_least, one.at_most) if bound is not None}
    excluded = {(one.column, value) for one in by_model if one.negate for value in one.values}
    return [
        *by_model,
        *(
            one
            for one in by_rule
            if (not one.columns() & columns and not numbers & {one.at_least, one.at_most})
            or (one.negate and one.values and not excluded.issuperset((one.column, value) for value in one.values))
        ),
    ]


def _take_values(
    found: list[Filter],
    dropped: list[str],
    name: str,
    given: Any,
    negate: bool,
    question: str,
    columns: FilterColumns,
    matches: Sequence[ValueMatch],
    grounded: bool,
) -> None:
    listed = given if isinstance(given, list) else [given]
    values = list[str | bool]()
    for value in listed[:_MOST_VALUES]:
        if name in columns.flags and isinstance(value, bool):
            if not grounded or _word_of(name.replace("_", " "), question):
                values.append(value)
            else:
                dropped.append(f"the question does not speak of {_said(name)}, that filter was left out")
            continue
        own = columns.values.known(name, value) if isinstance(value, str) and name in columns.texts else None
        if own is None:
            dropped.append(f"{_said(name)} has no value {_said(value)}, it was left out")
        elif columns.texts[name].names_items:
            dropped.append(f"{_said(name)} names single items and is no filter")
        elif grounded and not _says(question, name, own, matches):
            dropped.append(f"the question does not speak of {_said(own)}, it was left out")
        else:
            values.append(own)
    if values:
        found.append(Filter(column=name, values=tuple(dict.fromkeys(values)), negate=negate, source="model", score=0.8))


def _take_bounds(
    found: list[Filter],
    dropped: list[str],
    name: str,
    one: dict[str, Any],
    question: str,
    columns: FilterColumns,
    grounded: bool,
) -> None:
    bounds: dict[str, float] = {}
    for key in ("at_least", "at_most"):
        number = one.get(key)
        if number is None:
            continue
        if isinstance(number, str) and _NUMBER.fullmatch(number.strip()):
            number = plain_number(number.strip()) if number.count(".") < 2 else None
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) < 1e15:
            dropped.append(f"{_said(one[key])} is no number, that bound of {_said(name)} was left out")
        elif name not in columns.numbers:
            dropped.append(f"{_said(name)} holds no numbers, its bound was left out")
        elif grounded and not _number_of(float(number), question):
            dropped.append(f"the question does not say {number:g}, that bound of {_said(name)} was left out")
        else:
            bounds[key] = float(number)
    if bounds:
        made = bounded(columns.numbers[name], bounds.get("at_least"), bounds.get("at_most"), score=0.8)
        found.append(Filter(column=name, at_least=made.at_least, at_most=made.at_most, source="model", score=0.8))


def _list_in(text: str) -> list[Any] | None:
    """The first JSON list, or object, of a text."""
    decoder = json.JSONDecoder()
    begins = [at for at, character in enumerate(text[:20_000]) if character in "[{"]
    for at in begins[:_MOST_BEGINNINGS]:
        try:
            value, _ = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            value = value.get("filters", [value])
        if isinstance(value, list) and (not value or any(isinstance(one, dict) for one in value)):
            return value
    return None


def _own_name(name: str, columns: FilterColumns) -> str | None:
    folded = name.strip().casefold().replace(" ", "_")
    known = [*columns.texts, *columns.numbers, *columns.flags]
    return next((own for own in known if own.casefold().replace(" ", "_") == folded), None)


def _says(question: str, column: str, value: str, matches: Sequence[ValueMatch]) -> bool:
    return any(match.column == column and match.value == value for match in matches) or _word_of(value, question)


def _word_of(value: str, question: str) -> bool:
    """Whether a word of the value, or its beginning, is in the question."""
    asked = {word[:5] for word in re.findall(r"[^\W_]{3,}", question.casefold())}
    return any(word[:5] in asked for word in re.findall(r"[^\W_]{3,}", value.casefold()))


def _number_of(number: float, question: str) -> bool:
    """Whether the question says the number, the one beside it, or its decade."""
    said = [plain_number(text) for text in _NUMBER.findall(question) if text.count(".") < 2]
    return any(abs(number - one) <= 1 or (one % 10 == 0 and number == one + 9) or number == one * 1000 for one in said)


def _said(value: Any) -> str:
    return f"“{as_data(value if isinstance(value, str) else shown(value), 40)}”"
