"""Filters read off the words of a question by rules: values that the columns hold, numbers with what bounds them.

No language model is needed, so that there is always an answer; what a model finds is checked against the same columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from recsys.retrieval.rag.ask_alternatives import alternatives_in
from recsys.retrieval.rag.ask_carried import spoken_alone
from recsys.retrieval.rag.ask_filter import Filter, FilterColumns, words_pattern
from recsys.retrieval.rag.ask_negation import Denial, Denials, Sense
from recsys.retrieval.rag.ask_numbers import number_filters, sense_of
from recsys.retrieval.rag.sql.column_values import ValueMatch
from recsys.retrieval.rag.words import STOP_WORDS, content_words
from recsys.retrieval.rerank.as_data import as_data

__all__ = [
    "WordFilters",
    "asks_for_facts",
    "filters_in",
    "left_words",
]

_SURE = 0.8
"""Cosine from which a value counts as named."""
_COMMON = 0.5
"""Values of more than this share of the items say nothing."""
_JOINED = re.compile(r"\s*(?:,\s*)?(?:or|/|and/or)\s*", re.IGNORECASE)
_LONGEST_TITLE_PART = 6
"""Words."""
_SPOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_FACTS = re.compile(
    r"^\s*(?:(?:can|could) you (?:tell|show) me\s+|please\s+|tell me\s+|show me\s+)?(?:"
    r"how (?:many|much|often|long)\b|count\b|when did i\b|"
    r"(?:what|which)\b[^?]*\b(?:did i|have i|do i (?:have|own)|i have|i did)\b|"
    r"(?:list|show|what(?:['’]s| is| was)?)\s+(?:in\s+)?(?:me\s+)?my\b|have i\b|did i\b|"
    r"my (?:history|last|first|previous)\b|"
    r"(?:what|which) (?:is|are|was|were) the (?:average|mean|median|total|number|highest|lowest|most|least|oldest|"
    r"newest|cheapest|longest|price|author|year)\b|"
    r"(?:what|who|which)\b[^?]*\b(?:wrote|written|author of)\b|"
    r"(?:average|mean|median|total)\b)",
    re.IGNORECASE,
)
_ASKING = frozenset(
    "want need look looking recommend suggest show find give get search something anything someone like good great "
    "best nice please thank item thing product option idea gift present buy read watch play one any everything "
    "anyone anybody everyone everybody nothing nobody none except excluding without avoid help surprise today tonight "
    "next spend pay dollar euro pound buck usd eur gbp rated".split()
)
"""Words of asking, which say nothing of what is asked for."""
_HAD = re.compile(
    r"\b(?:i|we|he|she|they)(?:['’](?:ve|s)|\s+ha(?:ve|s))?\s+(?:(?:already|recently|just)\s+(?:have|has|had|own|owns|got|"
    r"bought|read|seen|saw|watched|played|know|knows|tried|heard|finished)|owns?|(?<=ve\s)(?:read|seen|watched|played|"
    r"owned|bought))(?!\w)(?P<what>[^.,:;!?()\n–—]*?)(?=[.,:;!?()\n–—]|\b(?:but|so|now|because|although|though|i|i['’]d|"
    r"i['’]m|we|please|what|which|who|show|recommend|suggest|find|give)\b|\band\s+(?:i|we|now|want|need|would|am|are|"
    r"look\w*)\b|$)",
    re.IGNORECASE,
)
"""What somebody has is told, not wished for: "I already have lego"."""


def asks_for_facts(question: str) -> bool:
    """Whether a question wants to know something instead of being recommended something.

    >>> asks_for_facts("How many books did I read?"), asks_for_facts("Which toys would I like?")
    (True, False)
    """
    return _FACTS.search(question[:500]) is not None


@dataclass(frozen=True, slots=True)
class WordFilters:
    """What rules read off a question."""

    filters: list[Filter]
    notes: list[str]
    """Sentences about numbers that fit no column."""
    unread: list[str]
    """Stretches of the question that deny something and were not understood."""

    def unread_notes(self) -> list[str]:
        """A sentence about each."""
        return [
            f"“{as_data(words, 80)}” was not understood: what it names is neither asked for nor excluded"
            for words in self.unread
        ]


def left_words(question: str, filters: Sequence[Filter], unread: Sequence[str] = ()) -> list[str]:
    """Words that say something of what is wanted and are in no filter: what is left to search texts for."""
    left = question
    for known in (*unread, *(part for one in filters for part in one.words.split(", ") if part)):
        left = re.sub(rf"(?<!\w){re.escape(known)}(?!\w)", " ", left)
    return [word for word in content_words(spoken_alone(left)) if word not in _ASKING and not word.isdigit()]


def filters_in(question: str, columns: FilterColumns) -> WordFilters:
    """What the words of a question filter by, and what of it was not understood."""
    said = question
    told = [] if asks_for_facts(question) else [one.span() for one in _HAD.finditer(question) if one["what"].strip()]
    for low, high in told:
        question = question[:low] + " " * (high - low) + question[high:]
    names = {word for name in columns.items.columns for word in re.findall(r"[^\W\d_]+", name.lower())}
    denials = Denials(question, sorted(names))
    matches = _chosen(columns.values.match(question), columns, denials)
    titles = _title_exclusions(question, matches, columns, denials)
    matches = [match for match in matches if not any(low < match.end and match.begin < high for low, high, _ in titles)]
    found, unread = _text_filters(question, matches, columns, denials)
    taken = [(match.begin, match.end) for match in matches] + [(low, high) for low, high, _ in titles]
    numbers, notes = number_filters(question, taken, columns, denials, unread)
    flags = _flag_filters(question, columns, denials, unread)
    for denial in denials.found:
        if not denial.used:
            unread.append((denial.begin, denials.object_of(denial)[1]))
    spans = sorted({*unread, *denials.unread, *told})
    stretches = [
        said[low:high].strip()
        for low, high in spans
        if not any((a, b) != (low, high) and a <= low and high <= b for a, b in spans)
    ]
    filters = [*found, *(one for _, _, one in titles), *numbers, *flags]
    return WordFilters(filters, notes, list(dict.fromkeys(stretches)))


def _chosen(matches: Sequence[ValueMatch], columns: FilterColumns, denials: Denials) -> list[ValueMatch]:
    """The matches that count as named, no two of the same words."""

    def denied(match: ValueMatch) -> bool:  # what most items are says nothing of a wish, but much where it is denied
        sense = denials.sense(denials.before(match.begin), match.begin, match.end)
        return match.score >= 0.97 and sense == "excluded"

    sure = [
        match
        for match in matches
        if (match.score >= _SURE or match.rare_word)
        and (match.share <= _COMMON or denied(match))
        and not columns.texts[match.column].names_items
    ]
    # "fantasy books" is meant as the fantasy of half the items, not as a label of those words that few have.
    sure = [
        match
        for match in sure
        if not any(
            match.begin <= other.begin
            and other.end <= match.end
            and other.end - other.begin < match.end - match.begin
            and other.score >= 0.97
            and match.share < other.share / 20
            for other in sure
        )
    ]
    sure.sort(
        key=lambda match: (
            (match.score < 0.97, match.begin - match.end, not match.rare_word)
            + ((-match.share, -match.score) if match.rare_word else (-match.score, -match.share))
        )
    )
    kept = list[ValueMatch]()
    for match in sure:
        if all(match.end <= other.begin or other.end <= match.begin for other in kept):
            kept.append(match)
    return sorted(kept, key=lambda match: match.begin)


def _title_exclusions(
    question: str, matches: Sequence[ValueMatch], columns: FilterColumns, denials: Denials
) -> list[tuple[int, int, Filter]]:
    """(begin, end, filter) of denied words that stand in titles and are no values of columns: "no harry potter"."""
    if columns.items.schema.get("title") not in (pl.String, pl.Categorical, pl.Enum):
        return []
    found = list[tuple[int, int, Filter]]()
    titles = columns.items["title"].cast(pl.String)
    for denial in denials.found:
        begin, end = denials.object_of(denial)
        spoken = [(match.start() + begin, match.end() + begin) for match in _SPOKEN.finditer(question[begin:end])]
        valued = max((match.end for match in matches if begin <= match.begin < end), default=begin)
        if not denial.clear or any(match.begin == begin and match.end >= end for match in matches):
            continue
        for count in range(min(len(spoken), _LONGEST_TITLE_PART), 0, -1):
            low, high = spoken[0][0], spoken[count - 1][1]
            behind = question[spoken[count][0] : spoken[count][1]].casefold() if count < len(spoken) else ""
            part = question[low:high]
            if high <= valued:  # the values say as much
                break
            if (behind and behind not in STOP_WORDS) or part.casefold().split()[-1] in STOP_WORDS:
                continue
            if content_words(part) and len(part) <= 80 and bool(titles.str.contains(words_pattern(part)).any()):
                words = question[denial.begin : high]
                one = Filter(column="title", values=(part,), within=True, negate=True, words=words, score=0.8)
                found.append((low, high, one))
                denial.used = True
                break
    return found


def _text_filters(
    question: str, matches: Sequence[ValueMatch], columns: FilterColumns, denials: Denials
) -> tuple[list[Filter], list[tuple[int, int]]]:
    """Filters by values, and (begin, end) of those of which it is not clear whether they are wanted."""
    found, unread = list[Filter](), list[tuple[int, int]]()
    choices = [] if denials.found or "-free" in question.casefold() else alternatives_in(question, matches, columns)
    chosen = {id(match): made if n == 0 else [] for members, made in choices for n, match in enumerate(members)}
    before: ValueMatch | None = None
    denial: Denial | None = None
    sense: Sense = "wanted"
    denied = list[int]()  # places in `found` of what the same words deny
    for match in matches:
        if id(match) in chosen:
            found += chosen[id(match)]
            before = match
            continue
        gap = (before.end if before is not None else 0, match.begin)
        near = denials.before(match.begin)
        joined: Sense | None = "wanted"
        if before is not None and denial is not None and near in (None, denial):
            joined = denials.joined_sense(denial, sense, gap, before.column == match.column)
            if joined == "wanted":
                denial, sense = None, denials.sense(None, match.begin, match.end)
            sense = joined or sense
        else:
            denial, sense, denied = near, denials.sense(near, match.begin, match.end), []
        begin = match.begin if denial is None else denial.begin
        if denial is not None:
            denial.used = True
        one = Filter(column=match.column, values=(match.value,), words=match.words, score=match.score)
        if joined is None:
            for at in denied:
                old = found[at]
                found[at] = replace(old, together=(*old.together, one), words=question[begin : match.end])
        elif sense == "excluded":
            free = len("-free") if denial is None else 0
            spelled = match.words if denied else question[begin : match.end + free]
            denied.append(len(found))
            found.append(replace(one, negate=True, words=spelled))
        elif sense == "unclear":
            unread.append((begin, match.end))
        else:
            last = found[-1] if found else None
            column = columns.texts[match.column]
            alone = not column.separators and not column.listed
            also = before is not None and _JOINED.fullmatch(question[slice(*gap)])
            at = len(found) - 1 if last is not None and also else -1
            if alone:  # no item has two of them, as in "red trains or blue dolls"
                at = next((n for n, old in enumerate(found) if old.column == match.column and not old.negate), -1)
            if at >= 0 and found[at].column == match.column and not found[at].negate:
                last = found[at]
                words, score = f"{last.words}, {match.words}", min(last.score, match.score)
                values = tuple(dict.fromkeys((*last.values, match.value)))
                found[at] = replace(last, values=values, words=words, score=score)
            else:
                found.append(one)
        before = match
    return found, unread


def _flag_filters(
    question: str, columns: FilterColumns, denials: Denials, unread: list[tuple[int, int]]
) -> list[Filter]:
    """Columns of yes and no whose whole name is in the question."""
    found = list[Filter]()
    for name in columns.flags:
        spelled = r"[\s_-]+".join(re.escape(word) for word in re.findall(r"[^\W_]+", name))
        match = re.search(rf"\b{spelled}\b", question, re.IGNORECASE) if spelled else None
        if match is None:
            continue
        sense, denial = sense_of(denials, match.start(), match.end())
        begin = match.start() if denial is None or sense == "wanted" else denial.begin
        if sense == "unclear":
            unread.append((begin, match.end()))
        else:
            words = question[begin : match.end()]
            found.append(Filter(column=name, values=(sense == "wanted",), words=words, score=0.95))
    return found
