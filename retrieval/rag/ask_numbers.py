"""Filters by the numbers of a question: what bounds them, and which column they are about.

A number is only a filter where its column is plain. "Over 100 pieces" is no price, whatever its size; where the items
have no column of pieces it is left out and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from recsys.retrieval.rag.ask_filter import Filter, FilterColumns, NumberColumn
from recsys.retrieval.rag.ask_negation import THINGS, Denial, Denials, Sense

__all__ = ["bounded", "number_filters", "plain_number", "sense_of"]

_MONEY = r"[$€£]?\s*"
_COINS = r"(?:[$€£]|(?:dollars?|euros?|pounds?|bucks?|usd|eur|gbp)\b)"
_PRICE = re.compile(
    r"[$€£]|\b(?:dollars?|euros?|pounds?|bucks?|usd|eur|gbp|price[ds]?|costs?|cheap\w*|budget|spend)\b", re.IGNORECASE
)
_STARS = re.compile(r"\b(?:stars?|rated|ratings?|scores?|scored)\b", re.IGNORECASE)
_TIMES = "before|until|older than|earlier than|after|since|newer than|later than"
"""Comparisons of years."""
_BESIDE = frozenset("before|after|older than|earlier than|newer than|later than".split("|"))
"""Those that the number itself does not fulfil."""
_MOST = (
    r"under|below|less than|cheaper than|less expensive than|at most|max(?:imum)?(?: of)?|up to|no more than|"
    r"not more than|before|until|older than|earlier than|fewer than|shorter than|within|for less than|"
    r"budget (?:is|of)|<=?"
)
_LEAST = (
    r"over|above|more than|at least|min(?:imum)?(?: of)?|after|since|newer than|later than|longer than|better than|"
    r"higher than|more expensive than|no less than|not less than|starting at|>=?"
)
_LESS, _MORE = "less|fewer|under|below|lower|cheaper|earlier", "more|up|above|over|better|higher|later|newer"
_UNIT = r"(?:[$€£]|[^\W\d_]{1,15}\b)"


def _number(name: str) -> str:
    american, european = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", r"(?:\d{1,3}(?:\.\d{3})+|\d+),\d{1,2}(?![\d,])"
    return rf"(?P<{name}>{american}|{european}|\d+(?:\.\d+)?)(?P<{name}_k>k\b)?"


_BETWEEN = re.compile(
    rf"\b(?:between|from)\s+{_MONEY}{_number('low')}\s*(?:and|up to|to|until|till?|through|-|–)\s*"
    rf"{_MONEY}{_number('high')}(?!\d)",
    re.IGNORECASE,
)
_RANGES = (
    re.compile(rf"[$€£]\s*{_number('low')}\s*(?:-|–|to)\s*{_MONEY}{_number('high')}(?!\d)", re.IGNORECASE),
    re.compile(
        rf"(?<![\w.,-]){_number('low')}\s*(?:-|–|to)\s*{_number('high')}\s*(?={_COINS}|stars?\b)", re.IGNORECASE
    ),
    re.compile(
        r"(?<![\w.,-])(?P<low>1[5-9]\d\d|20\d\d)(?P<low_k>)\s*[-–]\s*(?P<high>1[5-9]\d\d|20\d\d)(?P<high_k>)(?![\w-])"
    ),
)
"""Without "between": of money, of stars, of years."""
_BOUND = re.compile(
    rf"(?:\b|(?<=\s))(?:(?P<most>{_MOST})|(?P<least>{_LEAST}))\s*(?:the\s+)?(?:year\s+)?{_MONEY}{_number('n')}"
    r"(?P<decade>['’]?s\b)?",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    rf"{_MONEY}{_number('n')}(?:\s*\+|\s*(?P<unit>(?!or\b|and\b|at\b|max|tops\b){_UNIT})?\s*(?:"
    rf"(?:or|and)\s+(?:(?P<less>{_LESS})|{_MORE})\b|(?P<most>at most|at the most|max(?:imum)?|tops)\b))",
    re.IGNORECASE,
)
_DECADE = re.compile(r"(?:\b(?:the\s+)?(?P<year>1[0-9]\d0|20\d0)|(?:\bthe\s+|['’])(?P<short>[3-9]0))['’]?s\b", re.I)
_YEAR = re.compile(
    r"\b(?:in|from|of|published|released|made)\s+(?P<year>1[0-9]\d\d|20\d\d)\b(?P<onwards>\s*\+|\s+(?:onwards?|"
    r"(?:and|or)\s+(?:later|newer|after|up)|on(?=\s*(?:[,.;:!?]|$|but\b|and\b)))(?!\w))?",
    re.IGNORECASE,
)
_READ = 1000
"""Characters of a question in which numbers are looked for."""
_WINDOW = 40
"""Characters on each side of a number in which its column may be named."""
_COUNTED = frozenset(
    "piece part player people person child children adult kid minute hour day week month page year gram inch volume "
    "copy review rating vote min hr yr kg g lb oz cm mm m km ml l gb mb ft".split()
)
"""Words behind a number that say what it counts, as plurals do as well."""
_COMPARED = re.compile(
    r"\b(?:(?:cheap|new|old|long|short)(?:er|est)|(?:more|less|most|least)\s+expensive|(?:better|best|highest|top)[\s-]rated)"
    r"\b",
    re.IGNORECASE,
)
"""What says nothing without a number."""
_OR = re.compile(r"\s*(?:,|/|(?:,\s*)?(?:or|and))\s*(?:from\s+|in\s+)?(?:the\s+)?", re.IGNORECASE)
_WORD_BEHIND = re.compile(r"[\s-]*([^\W\d_]+)")
_THING = re.compile(rf"(?:{THINGS})", re.IGNORECASE)
_AGES = re.compile(
    r"\b(?:age[ds]?|child(?:ren)?|kids?|toddlers?|bab(?:y|ies)|boys?|girls?|adults?|people|persons?|players?)\s*$",
    re.IGNORECASE,
)
"""In front of a bound: people older than that, or more of them."""


@dataclass(frozen=True, slots=True)
class _Bounds:
    """A number, or two, with what bounds them."""

    begin: int
    end: int
    low: float | None
    high: float | None
    beside: int = 0
    """1 where the number itself is outside."""
    about: str = ""
    """What the wording compares: ``years``, ``price``, ``rating``, ``length``; empty where it says nothing."""
    unit: str = ""
    """A word of what is counted that stands within."""

    @property
    def given(self) -> list[float]:
        return [number for number in (self.low, self.high) if number is not None]


def number_filters(
    question: str,
    taken: Sequence[tuple[int, int]],
    columns: FilterColumns,
    denials: Denials,
    unread: list[tuple[int, int]],
) -> tuple[list[Filter], list[str]]:
    """Filters, and sentences about numbers that fit no column.

    Args:
        question: in words.
        taken: (begin, end) of what has been understood as something else.
        columns: of the items.
        denials: of the question.
        unread: gets (begin, end) of denied numbers of which it is not clear what is denied.
    """
    found, notes, spans = list[Filter](), list[str](), [*taken, *denials.unread]
    for one in _bounds(question):
        spans.append((one.begin, one.end))
        if any(one.begin < high and low < one.end for low, high in taken):
            continue
        unit, unit_end = _unit_of(question, one, taken)
        column = _column_of(question, one, unit, columns)
        sense, denial = sense_of(denials, one.begin, one.end)
        words = question[one.begin if denial is None or sense == "wanted" else denial.begin : one.end].strip()
        if sense == "unclear" and denial is not None:
            unread.append((denial.begin, one.end))
        elif column is None:
            words = " ".join(f"{words}{question[one.end : unit_end]}".split())
            notes.append(f"“{words}” fits no column of the items and was left out")
        elif sense == "wanted":
            found.append(bounded(column, one.low, one.high, words))
        elif one.low is not None and one.high is not None:
            found.append(replace(bounded(column, one.low, one.high, words), negate=True))
        else:  # not under 20 is 20 and more
            low = None if one.high is None else one.high + one.beside
            high = None if one.low is None else one.low - one.beside
            found.append(bounded(column, low, high, words))
    for match in _COMPARED.finditer(question[:_READ]):
        if all(match.end() <= low or high <= match.start() for low, high in spans):
            notes.append(f"“{match.group()}” compares with no number and was left out")
    return _without_contradictions(found, notes), list(dict.fromkeys(notes))


def sense_of(denials: Denials, begin: int, end: int) -> tuple[Sense, Denial | None]:
    """Of a bound or a flag."""
    denial = denials.before(begin)
    sense = denials.sense(denial, begin, end)
    if denial is not None and denial.used and sense == "unclear" and denial.clear:
        sense = denials.sense_behind(denial)
    if denial is not None and sense != "wanted":
        denial.used = True
    return sense, denial


def bounded(column: NumberColumn, low: float | None, high: float | None, words: str = "", score: float = 0.9) -> Filter:
    """A filter of numbers, or of the years of dates."""
    if column.is_date:
        first = None if low is None else date(_year(low), 1, 1)
        last = None if high is None else date(_year(high), 12, 31)
        return Filter(column=column.name, at_least=first, at_most=last, words=words, score=score)
    return Filter(column=column.name, at_least=_plain(low), at_most=_plain(high), words=words, score=score)


def _without_contradictions(found: list[Filter], notes: list[str]) -> list[Filter]:
    """Without bounds of a column that no number keeps all of, such as "under 10 or over 100", which a note names."""
    kept = list[Filter]()
    for name in dict.fromkeys(one.column for one in found):
        same = [one for one in found if one.column == name]
        lows: list[Any] = [one.at_least for one in same if one.at_least is not None and not one.negate]
        highs: list[Any] = [one.at_most for one in same if one.at_most is not None and not one.negate]
        if lows and highs and max(lows) > min(highs):
            said = " and ".join(f"“{one.words}”" for one in same if not one.negate)
            notes.append(f"{said} do not go together and were left out")
            same = [one for one in same if one.negate]
        kept += same
    return [one for one in found if one in kept]


def _year(number: float) -> int:
    return int(min(max(number, 1), 9999))


def _plain(number: float | None) -> int | float | None:
    return int(number) if number is not None and number == int(number) and abs(number) < 2**53 else number


def _bounds(question: str) -> list[_Bounds]:
    """Every number with what bounds it, no two of the same words."""
    found = list[_Bounds]()

    def add(match: re.Match[str], low: float | None, high: float | None, **more: int | str) -> None:
        if all(match.end() <= one.begin or one.end <= match.start() for one in found):
            found.append(_Bounds(match.start(), match.end(), low, high, **more))  # type: ignore[arg-type]

    text = question[:_READ]
    for pattern in (_BETWEEN, *_RANGES):
        for match in pattern.finditer(text):
            low, high = sorted((_value(match, "low"), _value(match, "high")))
            add(match, low, high)
    for match in _BOUND.finditer(text):
        number, wording = _value(match, "n"), " ".join((match["most"] or match["least"]).lower().split())
        beside = int(wording in _BESIDE and number == int(number))
        last = number + 9 if match["decade"] and number % 10 == 0 else number  # of the 1990s
        if match["most"]:
            add(match, None, number - 1 if beside else last, beside=beside, about=_about(wording))
        else:
            add(match, last + 1 if beside else number, None, beside=beside, about=_about(wording))
    for match in _BEHIND.finditer(text):
        number, less = _value(match, "n"), match["less"] or match["most"]
        add(match, *((None, number) if less else (number, None)), unit=match["unit"] or "")
    for match in _DECADE.finditer(text):
        year = float(match["year"] or f"19{match['short']}")
        add(match, year, year + 9, about="years")
    for match in _YEAR.finditer(text):
        year = float(match["year"])
        add(match, year, None if match["onwards"] else year)
    return _joined(text, sorted(found, key=lambda one: (one.begin, one.end)))


def _joined(text: str, found: Sequence[_Bounds]) -> list[_Bounds]:
    """Ranges that follow each other as one: "from the 1960s or 1970s"."""
    whole = list[_Bounds]()
    for one in found:
        last = whole[-1] if whole else None
        if (
            last is not None
            and None not in (last.low, last.high, one.low, one.high)
            and last.about == one.about == "years"
            and _OR.fullmatch(text, last.end, one.begin)
            and (last.high + 1 == one.low or one.high + 1 == last.low)  # type: ignore[operator]
        ):
            low, high = min(last.given + one.given), max(last.given + one.given)
            whole[-1] = replace(last, end=one.end, low=low, high=high)
        else:
            whole.append(one)
    return whole


def _about(wording: str) -> str:
    if wording in _TIMES.split("|"):
        return "years"
    if wording.startswith(("budget", "cheaper", "less expensive", "more expensive")):
        return "price"
    return {"better than": "rating", "shorter than": "length", "longer than": "length"}.get(wording, "")


def _value(match: re.Match[str], name: str) -> float:
    return plain_number(match[name]) * (1000 if match[f"{name}_k"] else 1)


def plain_number(spelled: str) -> float:
    """A number as people write it: before one or two digits a comma begins the fraction, before three it groups them.

    >>> plain_number("1,299.50"), plain_number("1.299,50"), plain_number("19,9")
    (1299.5, 1299.5, 19.9)

    Raises:
        ValueError: it is none.
    """
    whole, comma, fraction = spelled.rpartition(",")
    if comma and len(fraction) < 3:
        return float(f"{re.sub('[.,]', '', whole)}.{fraction}")
    return float(spelled.replace(",", ""))


def _unit_of(question: str, one: _Bounds, taken: Sequence[tuple[int, int]]) -> tuple[str, int]:
    """What the number counts, in one word that is empty where nothing plain says so, and where that ends."""
    behind = _WORD_BEHIND.match(question, one.end)
    word, at, end = one.unit, -1, one.end
    if behind is not None and not word:
        word, at, end = behind.group(1), behind.start(1), behind.end()
    if any(low <= at < high for low, high in taken) or _THING.fullmatch(word):  # "before 2000 trains"
        return "", one.end
    folded = word.casefold()
    plural = len(folded) > 3 and folded.endswith("s") and not folded.endswith(("ss", "us", "is"))
    return (folded, end) if plural or folded in _COUNTED else ("", one.end)


def _column_of(question: str, one: _Bounds, unit: str, columns: FilterColumns) -> NumberColumn | None:
    """The column that a number is about: by words beside it that name the column, its unit, and its size."""
    begin, end, given = one.begin, one.end, one.given
    near = question[max(0, begin - _WINDOW) : end + _WINDOW].casefold()
    words = {word.rstrip("s") for word in re.findall(r"[^\W\d_]+", near)}
    behind = re.match(r"\s*([^\W\d_]+)", question[end:].casefold())
    counted = behind.group(1).rstrip("s") if behind else ""
    money = bool(_PRICE.search(question[begin:end]) or _PRICE.fullmatch(unit))
    if not unit and not money and (ages := _AGES.search(question[:begin])):
        unit = ages.group().strip().casefold()
    year_like = all(1000 <= number <= 2100 and number == int(number) for number in given)
    best: tuple[float, NumberColumn] | None = None
    for column in columns.numbers.values():
        names = [word.rstrip("s") for word in re.findall(r"[^\W\d_]+", column.name.casefold().replace("_", " "))]
        if column.named_like_id or not names:
            continue
        of_price = bool({"price", "cost", "amount"} & set(names))
        of_stars = bool({"rating", "star", "score", "rate"} & set(names)) and column.high <= 10
        of_years = column.is_date or (column.whole and 0 < column.high <= 2100 and bool({"year", "date"} & set(names)))
        named = any(name in words for name in names)
        if money or one.about == "price":
            if not of_price:
                continue
        elif unit and not (of_stars and _STARS.fullmatch(unit)) and unit.rstrip("s") not in names:
            continue
        elif (one.about == "years" and not of_years and not named) or (one.about == "length" and not named):
            continue
        elif one.about == "rating" and not (of_stars or named):
            continue
        score = 2.0 * sum(name in words for name in names) - 0.1 * len(names)
        if counted in names and {"count", "num", "number"} & set(names):
            score += 4 if unit.endswith("s") else 0.5  # of ratings, not a rating
        score += 3 * (one.about == "rating" and of_stars)
        if year_like and of_years:
            score += 3
        elif column.is_date:
            continue
        if of_price:
            score += 3 if _PRICE.search(near) else 1.2 * (not year_like)
        if of_stars and _STARS.search(near):
            score += 3
        if all(number > column.high or number < column.low for number in given):
            score -= 6 if any(number > 10 * column.high or number < column.low / 10 for number in given) else 1
        if score > 1 and (best is None or score > best[0]):
            best = (score, column)
    return None if best is None else best[1]
