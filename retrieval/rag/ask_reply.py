"""What a model writes about recommended items, checked: titles come from the catalogue, and only those on the page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recsys.retrieval.rag.citations import check_answer, cited_in
from recsys.retrieval.rag.sentences import CITATION, sentence_spans
from recsys.retrieval.rag.words import content_words, words

__all__ = ["CatalogueTitles", "CheckedReply", "checked_reply"]

_MOST_SENTENCES = 6
_LONGEST_TITLE = 12
"""Words of a title that are looked for in a sentence."""
_QUOTED = re.compile(r"[“”\"«»„‟*_]([^“”\"«»„‟*_]{3,160})[“”\"«»„‟*_]|(?<!\w)['‘]([^'’]{3,160})['’](?!\w)")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_RUN = re.compile(r"\b[A-Z][\w'’]*(?:[ -](?:(?:of|the|and|a|in|to|for)[ -]){0,2}[A-Z][\w'’]*)+")
_ADDRESS = re.compile(r"https?:|www\.|<[^>]{1,80}>|\]\(")
_CITATION = re.compile(CITATION)


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(plain))


class CatalogueTitles:
    """All titles of a catalogue, to find those that a text names."""

    def __init__(self, titles: Iterable[str | None]) -> None:
        """Titles of two words and more; single words stand in any sentence."""
        folded = {_folded(title) for title in titles if title}
        self._titles = {title for title in folded if " " in title and len(title.split()) <= _LONGEST_TITLE}

    def named_in(self, text: str) -> set[str]:
        """Folded titles that stand in a text."""
        parts = _folded(text).split()
        spans = (
            " ".join(parts[low:high])
            for low in range(len(parts))
            for high in range(low + 2, min(len(parts), low + _LONGEST_TITLE) + 1)
        )
        return {span for span in spans if span in self._titles}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReply:
    """The sentences of a reply that may be shown."""

    sentences: tuple[str, ...]
    """With the catalogue's titles at their numbers."""
    cited: tuple[int, ...] = ()
    """Numbers of the page that they name, from 1."""
    dropped: int = 0
    """Sentences that cite nothing, or another number, or name something that is not on the page."""
    unsupported: int = 0
    """Sentences kept whose words the lines of the cited items hold less than half of; they say so of themselves."""


def checked_reply(
    text: str, titles: Sequence[str], lines: Sequence[str], catalogue: CatalogueTitles, *, allowed_words: str = ""
) -> CheckedReply:
    """Keep what names items of the page only. No text makes this fail.

    A sentence stays where it cites a number of the page and no other, and names no title of the catalogue but that of
    an item it cites, nothing in quotation marks and no run of capitalised words that is not in those items' lines or
    in what the user said. At each number the title is put in.

    Args:
        text: what the model wrote.
        titles: of the page's items, the first is number 1.
        lines: what the model was told of each.
        catalogue: all titles.
        allowed_words: further text that may be repeated, such as the question.
    """
    spans = sentence_spans(text[:4_000])
    kept, cited, dropped = list[str](), list[int](), max(0, len(spans) - _MOST_SENTENCES)
    for begin, end in spans[:_MOST_SENTENCES]:
        sentence = text[begin:end].lstrip("#-> ").strip()
        numbers = cited_in(sentence)
        if not numbers or not all(1 <= number <= len(titles) for number in numbers):
            dropped += bool(sentence)
            continue
        own = " ".join([allowed_words, *(f"{titles[number - 1]} {lines[number - 1]}" for number in numbers)])
        if not _names_only(sentence, own, [titles[number - 1] for number in numbers], catalogue):
            dropped += 1
            continue
        named = {word for number in numbers for word in words(titles[number - 1])}
        if not set(content_words(_CITATION.sub(" ", sentence))) - named:  # the list below says as much
            dropped += 1
            continue
        kept.append(_with_titles(sentence, titles))
        cited += numbers
    checked = check_answer(" ".join(kept), [f"{title} {line}" for title, line in zip(titles, lines, strict=True)])
    return CheckedReply(
        sentences=tuple(kept),
        cited=tuple(dict.fromkeys(cited)),
        dropped=dropped,
        unsupported=min(len(kept), len(checked.unsupported)),
    )


def _names_only(sentence: str, own: str, titles: Sequence[str], catalogue: CatalogueTitles) -> bool:
    if _ADDRESS.search(sentence):
        return False
    spoken = _CITATION.sub(" ; ", sentence)
    there = f" {_folded(own)} "
    if any(
        f" {title} " not in f" {' ; '.join(_folded(one) for one in titles)} " for title in catalogue.named_in(spoken)
    ):
        return False
    quoted = [next(part for part in match.groups() if part) for match in _QUOTED.finditer(spoken)]
    named = []
    for match in _RUN.finditer(spoken):
        run = match.group() if match.start() else match.group().partition(" ")[2]  # a sentence begins with a capital
        if " " in run or "-" in run:
            named.append(run)
    return all(f" {_folded(part)} " in there for part in [*quoted, *named])


def _with_titles(sentence: str, titles: Sequence[str]) -> str:
    """Each number behind the title it stands for, unless the sentence has the title already."""
    spelled = _folded(sentence)

    def put(match: re.Match[str]) -> str:
        parts = []
        for number in cited_in(match.group()):
            title = titles[number - 1]
            parts.append(f"[{number}]" if not title or _folded(title) in spelled else f"“{title}” [{number}]")
        return ", ".join(parts)

    return _CITATION.sub(put, sentence)
