"""What the words of a question deny: where a denial begins, how far it reaches, and whether it is plain.

A wish may be turned round by one word, so nothing here guesses: where words stand between a denial and what it might
deny that are not known to say nothing, or where two denials meet, the answer is *unclear*, and whoever asks says so
instead of taking a side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["THINGS", "Denial", "Denials", "Sense"]

Sense = Literal["wanted", "excluded", "unclear"]

THINGS = (
    r"(?:any|some|no|every)?things?|stuff|items?|products?|books?|toys?|games?|movies?|films?|songs?|titles?|ones?|"
    r"brands?|makers?|authors?|writers?|artists?|categor(?:y|ies)|genres?|kinds?|types?|sorts?|series"
)
"""Nouns of what items are, which say nothing by themselves."""
_KINDS = {
    "but": rf"(?:(?:any|every)(?:thing|one|body)|all|any\s+(?:{THINGS}))\s+but|except(?:ing)?(?:\s+for)?|"
    r"excludes?|excluding|(?:other|different)\s+(?:than|from|to)|(?:apart|aside)\s+from|rather\s+than|instead\s+of|"
    r"unlike|minus|non(?=[\s-])",
    "without": r"without",
    "no": r"nothing|none|nobody|no\s+one|neither|nor|no|avoid(?:ing)?|hates?|dislikes?|skip|leave\s+out|"
    r"(?:tired|sick|bored)\s+(?:of|by|with)|fed\s+up\s+with|enough\s+of|(?:can't|cannot|can\s+not)\s+stand|"
    r"(?:(?:do|does|did|would|wo|should)n't|(?:(?:do|does|did|would|will|should)\s+)?(?:not|never))\s+"
    r"(?:want|like|need|enjoy|show|give|recommend|suggest|include|buy|get|read|watch|see|play|interested|into|keen|"
    r"an?\s+fan|looking\s+for|in\s+the\s+mood)",
    "not": r"not|never|(?:is|are|was|were|do|does|did|would|wo|should|must|has|have|had)n't",
}
"""How a denial is spelled, by what it is to the words behind it: all but them, lacking them, none of them, not so."""
_DENIAL = re.compile(r"\b(?:" + "|".join(f"(?P<k_{kind}>{words})" for kind, words in _KINDS.items()) + r")(?!\w|')")
_FREE = re.compile(r"-free\b")
_ONLY = (
    rf"(?:nothing|nobody|none|no\s+one|no(?:\s+other)?\s+(?:{THINGS}|else)|not|never)\s+(?:else\s+)?"
    r"(?:but|except(?:\s+for)?|other\s+than|besides|apart\s+from|aside\s+from|without|excluding)"
)
"""Two denials that make a demand: nothing but trains."""
_NO_DENIAL = re.compile(
    rf"\b(?:{_ONLY}|no\s*(?=[,.:;!?–—]|$)|no,?\s+(?:thanks|thank\s+you|problem|idea|matter|preference|rush|worries|doubt)|"
    r"(?:no|not)\s+(?:more|less)\s+than|why\s+(?:not|don't\s+(?:you|we|i))|not\s+(?:only|just|merely|necessarily|sure|certain|bad)|(?:or|if)\s+not|"
    r"(?:do|does|did)(?:n't|\s+not)\s+(?:care|mind|know|matter|remember)|nothing\s+(?:else|special|specific|fancy|"
    r"particular|in\s+particular|much)|(?:not|none\s+of|nothing\s+like)\s+(?:these|those|this|that|them)"
    r"(?:\s+(?:ones?|items?))?(?=\s*(?:[,.:;!?]|$|but\b|please\b))|"
    r"(?:i|we|he|she|they)\s+(?:(?:have|has|did|do|does)(?:n't|\s+not|\s+never)|never)\s+(?:seen|read|watched|bought|"
    r"played|owned|had|tried|heard|got|know|see|buy|own|have)(?:\s+(?:yet|before))?)(?!\w)"
)
"""What only looks like a denial of what follows."""
_DEGREE = re.compile(r"\bnot\s+(?:too|so|very|overly|really|as|quite|super)\s+[^\W\d_]+")
"""A quality is denied, not the thing behind it: a not too expensive train."""
_UNCLEAR = re.compile(
    r"\b(?:not|never|\w+n't)\s+(?:to\s+)?(?:exclud\w+|avoid\w*|skip\w*|leav\w+\s+out|hat(?:e|es|ing)|dislik\w+)\b"
)
_FILLERS = (
    rf"an?|the|about|by|from|in|for|too|more|of|with|on|to|at|as|is|are|be|was|were|being|been|it|its|that|which|who|"
    rf"all|any|single|like|likes|made|written|published|produced|sold|released|created|directed|has|have|having|"
    rf"contains?|containing|featuring|called|named|titled|related|similar|me|us|my|want|need|see|get|buy|show|give|"
    rf"costs?|costing|priced?|spend|pay|rated|go|{THINGS}"
)
_BOUNDARY = re.compile(
    r"[,.:;!?()\n]|[–—]|\s-\s|\b(?:but|i|i'd|i'm|we|please|instead|rather|maybe|perhaps|though|although|however|because)\b"
)
_BEHIND = r"\s+(?:by|from|of|in|with|about)(?:\s+(?:the|an?))?\s+"


@dataclass(slots=True)
class Denial:
    """Words that deny what follows them."""

    begin: int
    """Characters of the question, as are all places here."""
    end: int
    kind: str
    clear: bool = True
    """False for a denied denial, such as "don't avoid"."""
    used: bool = field(default=False, compare=False)
    """Something was found that it speaks of."""


class Denials:
    """The denials of one question."""

    def __init__(self, question: str, fillers: Iterable[str] = ()) -> None:
        """Find them.

        Args:
            question: in words.
            fillers: further words that say nothing by themselves, such as the names of columns.
        """
        self.question = question
        folded = "".join(c.lower() if len(c.lower()) == 1 else c for c in question.replace("’", "'"))
        self.unread = [(match.start(), match.end()) for match in _DEGREE.finditer(folded)]
        """(begin, end) of denials that were understood to be about nothing that could be found."""
        text = _blank(_DEGREE, _blank(_NO_DENIAL, folded))
        own = "|".join(re.escape(word) for word in fillers)
        self._chain = re.compile(rf"(?:[\s\"'“”‘-]|(?<!\w)(?:{_FILLERS}{'|' + own if own else ''})(?!\w))*")
        self._text = text
        self.found: list[Denial] = []
        doubled = [match.span() for match in _UNCLEAR.finditer(text)]
        for match in _DENIAL.finditer(text):
            begin, end, kind = match.start(), match.end(), str(match.lastgroup)[2:]
            last = self.found[-1] if self.found else None
            if last is not None and self._chain.fullmatch(text, last.end, begin):
                same = text[last.begin : last.end] == text[begin:end]
                last.end, last.clear = end, last.clear and same
            else:
                clear = not any(low <= begin < high for low, high in doubled)
                self.found.append(Denial(begin, end, kind, clear))

    def before(self, begin: int) -> Denial | None:
        """The denial whose reach a place is in."""
        last = next((one for one in reversed(self.found) if one.end <= begin), None)
        return None if last is None or _BOUNDARY.search(self._text, last.end, begin) else last

    def sense(self, denial: Denial | None, begin: int, end: int) -> Sense:
        """Of words that nothing else was denied in front of."""
        if denial is None:
            return "excluded" if _FREE.match(self._text, end) else "wanted"
        plain = self._chain.fullmatch(self._text, denial.end, begin) is not None
        return "excluded" if denial.clear and plain and not _FREE.match(self._text, end) else "unclear"

    def sense_behind(self, denial: Denial) -> Sense:
        """Of a bound or a flag behind something that was denied: "no dolls under 20 dollars"."""
        return "unclear" if denial.kind == "no" else "wanted"

    def joined_sense(self, denial: Denial, sense: Sense, gap: tuple[int, int], same_column: bool) -> Sense | None:
        """Of a value after another one that a denial is about, None where both are denied together only.

        Args:
            denial: of the first.
            sense: the first one's.
            gap: (begin, end) between the two.
            same_column: whether both are values of one column.
        """
        between = self._text[slice(*gap)]
        if re.fullmatch(r"\s*(?:,\s*)?(?:(?:and/)?or|nor|/)\s*(?:an?\s+|the\s+|any\s+)?", between):
            return sense
        if re.fullmatch(r"\s*(?:,\s*)?and\s*", between):
            return sense if same_column else "unclear"
        if re.fullmatch(r"\s*,\s*", between):
            listed = re.match(r"[^.:;!?()]*?\b(?:or|nor|and)\b", self._text[gap[1] :])
            return sense if same_column and listed else "unclear"
        if re.fullmatch(r"[\s-]*", between):
            if sense == "excluded" and self._text[denial.begin : denial.end] == "non":  # non-wooden trains are trains
                return "wanted"
            return None if sense == "excluded" else sense
        if sense == "unclear" and not _BOUNDARY.search(between):
            return sense
        if re.fullmatch(_BEHIND, between):
            if denial.kind == "without":
                return "wanted"
            return None if denial.kind == "no" and sense == "excluded" else "unclear"
        return "wanted"

    def object_of(self, denial: Denial) -> tuple[int, int]:
        """(begin, end) of what may be denied: behind the words that say nothing, to the end of the clause."""
        chain = self._chain.match(self._text, denial.end)
        begin = chain.end() if chain is not None else denial.end
        stop = _BOUNDARY.search(self._text, begin)
        following = next((one.begin for one in self.found if one.begin >= begin), len(self._text))
        return begin, max(begin, min(stop.start() if stop is not None else len(self._text), following))


def _blank(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda match: " " * len(match.group()), text)
