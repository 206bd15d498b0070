"""Answers with citations, checked: does every number exist, and does what is cited say what the sentence says?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recsys.errors import InputError, shown
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.sentences import CITATION, sentence_spans
from recsys.retrieval.rag.words import content_words

__all__ = [
    "MIN_OVERLAP",
    "MIN_PROBABILITY",
    "CheckedAnswer",
    "CheckedSentence",
    "Entails",
    "check_answer",
    "cited_in",
    "judged_answer",
]

MIN_OVERLAP = 0.5
"""Share of a sentence's content words that its passages must hold, unless asked otherwise."""
MIN_PROBABILITY = 0.5
"""Of entailment, where a model judges."""
Entails = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""Probability that each (premise, claim) pair follows, as :class:`recsys.retrieval.rag.nli.EntailmentModel` gives."""

_CITATION = re.compile(CITATION)
_PARTS = re.compile(r"(\d{1,9})(?:\s*[-–]\s*\^?(\d{1,9}))?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MARKER = re.compile(r"\s*(?:\d{1,3}[.)]|[-*•])\s+")
"""Of a list's line."""
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_ZEROS = re.compile(r"(?<![\d.,])(\d+)\.(?:(\d*[1-9])0+|0+)(?![\d]|[.,]\d)")
_MOST_RANGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSentence:
    """One sentence of an answer."""

    text: str
    """As it stands, citations included."""
    cited: tuple[int, ...]
    """Numbers in brackets that are passages, in their order, each once."""
    unknown: tuple[int, ...]
    """Numbers in brackets that no passage has."""
    support: float | None
    """Share of its content words that the cited passages hold, or the probability that they entail it; where nothing
    is cited, by the given passage that fits best. None for a sentence without content words, which claims nothing."""
    supported: bool
    """Enough support by passages that it cites; true of a sentence that claims nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedAnswer:
    """A text and what its citations are worth."""

    text: str
    sentences: tuple[CheckedSentence, ...]
    cited: tuple[int, ...]
    """Passages, by number from 1, that the text cites; each was given."""
    unknown_citations: tuple[int, ...]
    """Numbers that it cites and nobody gave."""
    unsupported: tuple[int, ...]
    """Places in ``sentences``, from 0, of those that their citations do not support, or that cite nothing."""
    judged_by: str
    """``overlap`` or ``entailment``."""

    @classmethod
    def of(cls, text: str, sentences: Sequence[CheckedSentence], judged_by: str) -> CheckedAnswer:
        """What some checked sentences amount to, which are the text's."""
        return cls(
            text=text,
            sentences=tuple(sentences),
            cited=tuple(dict.fromkeys(number for sentence in sentences for number in sentence.cited)),
            unknown_citations=tuple(dict.fromkeys(number for sentence in sentences for number in sentence.unknown)),
            unsupported=tuple(place for place, sentence in enumerate(sentences) if not sentence.supported),
            judged_by=judged_by,
        )

    @property
    def passed(self) -> bool:
        """Every citation exists and every sentence is supported; an empty text did not pass."""
        return bool(self.sentences) and not self.unknown_citations and not self.unsupported


def check_answer(
    text: str, passages: Sequence[Passage | str], *, min_overlap: float = MIN_OVERLAP, entails: Entails | None = None,
    min_probability: float = MIN_PROBABILITY,
) -> CheckedAnswer:  # fmt: skip
    """Check every sentence. No text makes this fail.

    By overlap a sentence is supported where its cited passages together hold at least ``min_overlap`` of its content
    words and every number in it. That sees made-up things and figures, not a denial or two facts mixed up: give
    ``entails`` for those.

    Args:
        text: with citations such as ``[1]``, ``[1, 3]`` or ``[2-4]``, before or behind the full stop.
        passages: as they were given; the first is number 1.
        min_overlap: from 0 to 1.
        entails: judges instead of the overlap, each cited passage by itself and all of them joined.
        min_probability: of entailment.

    Raises:
        InputError: a threshold outside 0 to 1.
    """
    for name, least in (("min_overlap", min_overlap), ("min_probability", min_probability)):
        if not 0 <= least <= 1:
            raise InputError(f"{name} must be from 0 to 1, got {least!r}")
    texts = [passage if isinstance(passage, str) else passage.text for passage in passages]
    pieces = [text[begin:end] for begin, end in sentence_spans(text)]
    claims = [_CITATION.sub(" ", _without_marker(piece)) for piece in pieces]
    numbers = [cited_in(piece) for piece in pieces]
    known = [tuple(number for number in found if 1 <= number <= len(texts)) for found in numbers]
    has_claim = [bool(content_words(claim)) for claim in claims]
    if entails is None:
        supports = _by_overlap(claims, known, texts)
        least = min_overlap
    else:
        supports = _by_entailment(claims, known, texts, has_claim, entails)
        least = min_probability
    sentences = tuple(
        CheckedSentence(
            text=piece,
            cited=cited,
            unknown=tuple(number for number in found if number not in cited),
            support=support if claimed else None,
            supported=not claimed or (bool(cited) and support >= least),
        )
        for piece, cited, found, support, claimed in zip(pieces, known, numbers, supports, has_claim, strict=True)
    )
    return CheckedAnswer.of(text, sentences, "overlap" if entails is None else "entailment")


def judged_answer(
    text: str, passages: Sequence[Passage | str], *, min_overlap: float, entails: Entails | None
) -> tuple[CheckedAnswer, tuple[str, ...]]:
    """:func:`check_answer`, and notes: where the judge cannot compute, it is the overlap that counts."""
    try:
        return check_answer(text, passages, min_overlap=min_overlap, entails=entails), ()
    except (IndexError, RuntimeError, ValueError) as error:
        # Of torch or transformers: too little memory, no such token, a tokenizer that cannot pad, …
        if entails is None or isinstance(error, InputError):
            raise
        note = f"the entailment model failed ({shown(' '.join(str(error).split()))}); words that overlap were counted"
        return check_answer(text, passages, min_overlap=min_overlap), (note,)


def cited_in(text: str) -> tuple[int, ...]:
    """Numbers in brackets, in their order, each once; a range counts as all its numbers, a long one as its first 50 and
    its last.

    >>> cited_in("Red [2], wooden [1, 3] and old [5-7][2].")
    (2, 1, 3, 5, 6, 7)
    >>> len(cited_in("[1-900]")), cited_in("[1-900]")[-1], cited_in("[9-7]")
    (51, 900, (9, 7))
    """
    found: dict[int, None] = {}
    for match in _CITATION.finditer(text):
        for low, high in _PARTS.findall(match.group()):
            first, last = int(low), int(high or low)
            found.update(dict.fromkeys(range(first, min(last, first + _MOST_RANGE - 1) + 1)))
            found.update(dict.fromkeys((first, last)))
    return tuple(found)


def _without_marker(piece: str) -> str:
    marker = _MARKER.match(piece)
    return piece if marker is None else piece[marker.end() :]


def _plain_figures(text: str) -> str:
    """Equal numbers spelled alike.

    >>> _plain_figures("1,000 parts at 3.50 or 20.00, in version 1.2.0")
    '1000 parts at 3.5 or 20, in version 1.2.0'
    """
    plain = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    return _ZEROS.sub(lambda match: match[1] + (f".{match[2]}" if match[2] else ""), plain)


def _by_overlap(claims: Sequence[str], known: Sequence[Sequence[int]], texts: Sequence[str]) -> list[float]:
    claims, texts = [_plain_figures(claim) for claim in claims], [_plain_figures(text) for text in texts]
    held = [frozenset(content_words(text)) for text in texts]
    figures = [frozenset(_NUMBER.findall(text)) for text in texts]
    supports = []
    for claim, cited in zip(claims, known, strict=True):
        said, counted = set(content_words(claim)), set(_NUMBER.findall(claim))
        among = [cited] if cited else [[number] for number in range(1, len(texts) + 1)]
        best = 0.0
        for group in among if said else []:
            there = frozenset[str]().union(*(held[number - 1] for number in group))
            numbers = frozenset[str]().union(*(figures[number - 1] for number in group))
            best = max(best, len(said & there) / len(said) if counted <= numbers else 0.0)
        supports.append(best)
    return supports


def _by_entailment(
    claims: Sequence[str], known: Sequence[Sequence[int]], texts: Sequence[str], has_claim: Sequence[bool],
    entails: Entails,
) -> list[float]:  # fmt: skip
    pairs: list[tuple[str, str]] = []
    owners: list[int] = []
    for place, (claim, cited, claimed) in enumerate(zip(claims, known, has_claim, strict=True)):
        if not claimed:
            continue
        premises = [texts[number - 1] for number in cited or range(1, len(texts) + 1)]
        if len(cited) > 1:
            premises.append("\n".join(premises))
        pairs += [(premise, claim.strip()) for premise in premises]
        owners += [place] * len(premises)
    supports = [0.0] * len(claims)
    for place, chance in zip(owners, entails(pairs) if pairs else [], strict=True):
        supports[place] = max(supports[place], float(chance))
    return supports
