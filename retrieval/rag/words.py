"""Words of a text as keyword search and citation checks compare them: alike whatever their case, width or plural."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["STOP_WORDS", "content_words", "words"]

# Scripts without spaces are taken sign by sign: a whole line would be one word otherwise.
_SIGN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_SIGN}]|[^\W_{_SIGN}]+")

STOP_WORDS = frozenset(
    "a about after again all also am an and any are as at be because been before being between both but by can could "
    "did do does doing down during each few for from further had has have having he her here hers him his how i if in "
    "into is it its itself just may me might more most must my no nor not of off on once only or other our out over "
    "own same shall she should so some such than that the their them then there these they this those through to too "
    "under until up very was we were what when where which while who whom why will with would you your yes".split()
)
"""English words that say nothing by themselves."""


def words(text: str) -> list[str]:
    """Folded words in their order, plurals cut as by the S-stemmer of Harman (1991) in its simplest form.

    >>> words("Two RED Trains, a glass & ponies")
    ['two', 'red', 'train', 'a', 'glass', 'pony']
    """
    return [_singular(word) for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def content_words(text: str) -> list[str]:
    """The words that carry meaning.

    >>> content_words("What is the price of the trains?")
    ['price', 'train']
    """
    folded = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [
        _singular(word)
        for word in folded
        if word not in STOP_WORDS and (len(word) > 1 or not word.isascii() or word.isdigit())
    ]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
