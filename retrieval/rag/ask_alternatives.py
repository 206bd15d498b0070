"""What an "or" joins where both sides are of different columns: "a green train or a blue doll", "wood or by brio"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from recsys.retrieval.rag.ask_filter import Filter, FilterColumns
from recsys.retrieval.rag.sql.column_values import ValueMatch

__all__ = ["alternatives_in"]

_SMALL = r"(?:(?:an?|the|any|some|made|by|from|of|in|with|about|for)\s+)*"
_BESIDE = re.compile(rf"[\s-]+{_SMALL}", re.IGNORECASE)
"""Between values that are wanted of one item: "a train by brio"."""
_OR = re.compile(
    rf"\s*(?:,\s*)?(?:\b(?:and/)?or\b|/)\s*(?:(?:else|maybe|something|anything|one)\s+)?{_SMALL}", re.IGNORECASE
)
"""Between wishes of which one suffices: "trains, or something by brio"."""
_LISTED = re.compile(rf"\s*,\s*(?:an?|the|some|something|anything)\s+{_SMALL}", re.IGNORECASE)
"""The same where an "or" follows: "a train, a doll or a ship"."""


def alternatives_in(
    question: str, matches: Sequence[ValueMatch], columns: FilterColumns
) -> list[tuple[list[ValueMatch], list[Filter]]]:
    """The stretches of a question in which "or" joins different columns, as (their matches, their filters).

    Sides that end in the same column are whole wishes, each of its own ("a green train or a blue doll"), as is a side
    of several words before a single one ("red trains or brio"). Single words before the last side share what follows
    there: "wood or brio trains" are trains. An "or" between values of one column is not looked at here.

    Args:
        question: in words, nothing of which is denied.
        matches: values it names, in order.
        columns: those of the items.
    """
    found = list[tuple[list[ValueMatch], list[Filter]]]()
    for sides in _joined(question, matches):
        inside = {id(match) for side in sides for match in side}
        single = {match.column for side in sides for match in side if _one_value(columns, match.column)}
        across = [(before[-1].column, behind[0].column) for before, behind in zip(sides, sides[1:], strict=False)]
        if all(one == other for one, other in across) or any(
            match.column in single and id(match) not in inside for match in matches
        ):
            continue
        last, shared = sides[-1], list[ValueMatch]()
        alone = [match for side in sides[:-1] for match in side] if all(len(side) == 1 for side in sides[:-1]) else []
        if alone and len(last) > 1 and last[-1].column not in {match.column for match in alone}:
            sides, shared = [*sides[:-1], last[:1]], last[1:]
        wishes = _merged([_all_of(side, columns) for side in sides])
        score = min(one.score for wish in wishes for one in wish)
        spelled = ", ".join(match.words for side in sides for match in side)
        first, *others = [replace(wish[0], together=tuple(wish[1:])) for wish in wishes]
        whole = [replace(first, either=tuple(others), words=spelled, score=score), *_all_of(shared, columns)]
        found.append(([match for side in (*sides, shared) for match in side], whole))
    return found


def _joined(question: str, matches: Sequence[ValueMatch]) -> list[list[list[ValueMatch]]]:
    """Values side by side, cut at every "or"; those with an "or" at all."""
    groups = list[list[list[ValueMatch]]]()
    chosen = set[int]()
    end = -1
    for match in matches:
        between = question[end : match.begin] if end >= 0 else ""
        is_or = _OR.fullmatch(between) is not None
        if groups and (is_or or _LISTED.fullmatch(between)):
            groups[-1].append([match])
            chosen |= {len(groups)} if is_or else set()
        elif groups and _BESIDE.fullmatch(between):
            groups[-1][-1].append(match)
        else:
            groups.append([[match]])
        end = match.end
    return [sides for number, sides in enumerate(groups, 1) if number in chosen]


def _all_of(side: Sequence[ValueMatch], columns: FilterColumns) -> list[Filter]:
    """Every value; of a column that holds one only, any of them."""
    wishes = list[Filter]()
    for match in side:
        one = Filter(column=match.column, values=(match.value,), words=match.words, score=match.score)
        at = next((n for n, other in enumerate(wishes) if other.column == match.column), -1)
        if at >= 0 and _one_value(columns, match.column):
            wishes[at] = _any_of(wishes[at], one)
        else:
            wishes.append(one)
    return wishes


def _merged(wishes: Sequence[list[Filter]]) -> list[list[Filter]]:
    """Single values of one column as one wish."""
    merged = list[list[Filter]]()
    for wish in wishes:
        at = next((n for n, one in enumerate(merged) if [o.column for o in one] == [w.column for w in wish]), -1)
        if at >= 0 and len(wish) == 1:
            merged[at] = [_any_of(merged[at][0], wish[0])]
        else:
            merged.append(wish)
    return merged


def _any_of(one: Filter, other: Filter) -> Filter:
    values = tuple(dict.fromkeys((*one.values, *other.values)))
    return replace(one, values=values, words=f"{one.words}, {other.words}", score=min(one.score, other.score))


def _one_value(columns: FilterColumns, name: str) -> bool:
    column = columns.texts[name]
    return not column.separators and not column.listed
