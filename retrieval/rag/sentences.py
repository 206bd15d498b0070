"""Where sentences begin and end, by rules: no model, no data files, and never an error."""

from __future__ import annotations

import re

__all__ = ["CITATION", "sentence_spans"]

CITATION = r"[\[【]\s*\^?\d{1,9}(?:\s*[,;\-–]\s*\^?\d{1,9}){0,63}\s*[\]】]"
"""Numbers in brackets, as answers cite: ``[1]``, ``[1, 3]``, ``[2-4]``."""

_END = re.compile(
    r"(?:[.!?…]{1,3}|[。！？])[\"'”’»)\]]{0,3}"  # how a sentence ends, quotes and brackets closed
    rf"(?:[ \t]{{0,3}}{CITATION}){{0,16}}"  # citations behind the full stop belong to it
    r"|\n[ \t]{0,16}"
)
_OPEN = frozenset(
    "mr mrs ms dr prof sr jr st vs etc no nos vol ed eds fig inc ltd co corp dept approx e.g i.e u.s u.k a.m p.m "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
"""Words whose full stop ends no sentence."""
_LAST_WORD = re.compile(r"[\w.]{1,16}\Z")
_MOST_SPACE = 16


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(begin, end) of every sentence, without the space around it; all that is no space is in exactly one.

    A line break ends a sentence as well. Abbreviations, initials, decimal points and the numbers of a list do not.

    >>> text = "Dr. Seuss wrote it. [1] It costs 3.50! Is it red?"
    >>> [text[begin:end] for begin, end in sentence_spans(text)]
    ['Dr. Seuss wrote it. [1]', 'It costs 3.50!', 'Is it red?']
    """
    spans: list[tuple[int, int]] = []
    begin = 0
    for match in _END.finditer(text):
        if _ends(text, match.start(), match.end()):
            _add(spans, text, begin, match.end())
            begin = match.end()
    _add(spans, text, begin, len(text))
    return spans


def _ends(text: str, mark: int, after: int) -> bool:
    if text[mark] in "\n。！？":
        return True
    if after < len(text) and not text[after].isspace():
        return False
    if text[mark] != "." or after - mark > 1:
        return True
    word = _LAST_WORD.search(text[max(0, mark - _MOST_SPACE) : mark])
    if word is None:
        return True
    last = word.group().lower()
    near = max(0, mark - _MOST_SPACE)  # a look back to the beginning of a long line would take its length every time
    line = text[max(near, text.rfind("\n", near, mark) + 1) : mark]
    starts = near == 0 or len(line) < _MOST_SPACE
    if starts and line.strip().isdigit() and len(line.strip()) <= 3:  # a numbered list
        return after >= len(text) or text[after] == "\n"
    is_initial = len(last) == 1 and last.isalpha() and text[mark - 1].isupper()
    return last not in _OPEN and not is_initial


def _add(spans: list[tuple[int, int]], text: str, begin: int, end: int) -> None:
    piece = text[begin:end]
    low = begin + len(piece) - len(piece.lstrip())
    high = begin + len(piece.rstrip())
    if low < high:
        spans.append((low, high))
