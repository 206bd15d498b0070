"""What earlier questions of a conversation mean for a further one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from recsys.retrieval.rag.ask_filter import Filter
from recsys.retrieval.rag.words import words

__all__ = ["asks_for_others", "carried_over", "spoken_alone", "starts_over"]

_OTHERS = re.compile(
    r"\b(?:others?(?!\s+than)|another|else|different(?!\s+(?:than|from|to))|some more|more (?:of|like)|"
    r"not (?:these|those|this|that)|next ones?)\b|^\s*more\b",
    re.IGNORECASE,
)
_OVER = re.compile(
    r"\b(?:start (?:over|again)|forget (?:it|that|all|everything)|never ?mind|new (?:question|search)|"
    r"something completely)\b",
    re.IGNORECASE,
)
_ALSO = re.compile(r"\b(?:also|as well|too|only|and|both)\b", re.IGNORECASE)


def asks_for_others(question: str) -> bool:
    """Whether items that were shown before are not wanted again."""
    return _OTHERS.search(question[:500]) is not None


def starts_over(question: str) -> bool:
    """Whether what was asked before counts no more."""
    return _OVER.search(question[:500]) is not None


def spoken_alone(question: str) -> str:
    """The question without what only speaks of the conversation.

    >>> spoken_alone("start over, a doll").strip(" ,")
    'a doll'
    """
    return _OVER.sub(" ", _OTHERS.sub(" ", question))


def carried_over(earlier: Sequence[Filter], new: Sequence[Filter], question: str) -> list[Filter]:
    """Filters of the conversation so far behind a further question: a new one replaces those of the same column,
    unless one of them excludes, or the question says "also" or "only"."""
    if starts_over(question):
        return list(new)
    adds = _ALSO.search(question[:500]) is not None
    kept = list[Filter]()
    for old in earlier:
        same = [
            one
            for one in new
            if old.column in one.columns() and not (one.negate and one.together) and one.within == old.within
        ]
        bounds = bool(same) and not old.values and not any(one.values for one in same)
        if _of_many(old):
            if adds or not any(one.columns() & old.columns() for one in new if not one.negate):
                kept.append(old)
        elif old.together or old.within:  # until all of it is asked for
            kept.append(old)
        elif bounds and (old.negate or any(one.negate for one in same)):
            span = (old.at_least, old.at_most)
            if all(one.negate != old.negate and (one.at_least, one.at_most) != span for one in same):
                kept.append(old)
        elif bounds and all((one.at_least is None) == (old.at_most is None) for one in same):
            kept.append(old)  # a lower bound beside an upper one
        elif not same or (not bounds and (adds or old.negate != same[0].negate)):
            kept.append(old)
    wanted = {(part.column, value) for one in new if not one.negate for part in one.parts() for value in part.values}
    refused = {(one.column, value) for one in new if one.negate and not one.together for value in one.values}
    asked = f" {' '.join(words(question))} "
    result = list[Filter]()
    for old in kept:  # what is asked for now is not excluded any more, and the other way round
        if old.within:
            spoken = any(f" {' '.join(words(str(value)))} " in asked for value in old.values)
            values = () if spoken else old.values
        elif _of_many(old):
            left = [one for wish in old.wishes() if (one := _without(wish, refused)) is not None]
            result += [replace(left[0], either=tuple(left[1:]), source="earlier")] if left else []
            continue
        elif old.together:
            parts = [(one.column, value) for one in (old, *old.together) for value in one.values]
            values = () if wanted.issuperset(parts) else old.values
        else:
            against = wanted if old.negate else refused
            values = tuple(value for value in old.values if (old.column, value) not in against)
        if values or not old.values:
            result.append(replace(old, values=values, source="earlier"))
    return [*result, *new]


def _of_many(one: Filter) -> bool:
    """A wish with a choice, or of more than one column."""
    return not one.negate and bool(one.either or one.together)


def _without(wish: Filter, refused: set[tuple[str, str | bool]]) -> Filter | None:
    """A wish of values without those that are refused; None where nothing of it is left."""
    values = tuple(value for value in wish.values if (wish.column, value) not in refused)
    together = [_without(one, refused) for one in wish.together]
    if not values or None in together:
        return None
    return replace(wish, values=values, together=tuple(one for one in together if one is not None))
