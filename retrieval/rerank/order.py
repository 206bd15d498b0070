"""An order read from what a model said, checked against the labels that it was given.

A label is looked up, never computed with: what is not a label exactly as it was given (``[0]``, ``[-2]``, ``[99]``,
digits of another script) is foreign, and no text whatever leads to anything but a permutation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys.retrieval.rerank.result import Faults

__all__ = ["Order", "order_of_scores", "read_order"]

_BRACKETS = re.compile(r"\[([^\[\]]{0,2000})\]")
_SPLITS = (re.compile(r"\n+"), re.compile(r"[>,;\n|→≻]+"), re.compile(r"\s+"))
_PART = re.compile(r"(?:\d{1,4}[.):]\s+)?\(?([A-Za-z]|-?\d{1,9})\)?[.!]?(?:\s*[.:)–-]\s+[^\s>].*)?", re.DOTALL)
_OPENING = re.compile(r"^(?!\W*(?:[A-Za-z]|\d+)\b)[^\n>,:]{2,60}:")
_FRAME = " \t\r\n'\"*`_.[]"
_LONGEST = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Places of the candidates, best first."""

    places: tuple[int, ...]
    """A permutation of 0 … n − 1: those that were read, then the others in their earlier order."""
    read: int
    """How many of them were read."""
    faults: Faults = field(default_factory=Faults)


def order_of_scores(scores: Sequence[float]) -> list[int]:
    """Places by score, highest first; equal ones in their earlier order, those that are no number last.

    >>> order_of_scores([0.1, float("nan"), 0.7, 0.1])
    [2, 0, 3, 1]
    """
    return sorted(range(len(scores)), key=lambda at: (math.isnan(scores[at]), -scores[at]))


def read_order(text: str, labels: Sequence[str], *, expected: int | None = None) -> Order:
    """What order a text names.

    Read are labels in brackets (``[3] > [1]``, ``[3, 1]``), JSON (a list of labels or of objects that hold one each,
    or an object with such a list), and, in a text without either, labels that stand alone between ``>``, commas or
    line ends (``C > A``, ``1. C``, ``C: a title``). Labels missing from the text follow in their earlier order (the
    rule of RankGPT, arXiv 2304.09542).

    Args:
        text: whatever a model said.
        labels: of the candidates, in their earlier order; no label twice.
        expected: how many labels the text should hold; None = all. Fewer are counted as missing.
    Returns:
        An order of all candidates. Where no label could be read it is the earlier one and the answer counts as
        malformed, its candidates not as missing.

    >>> read_order("[3] > [1] > [3] > [0]", ["1", "2", "3"])
    Order(places=(2, 0, 1), read=2, faults=Faults(missing=1, repeated=1, foreign=1, malformed=0, failed=0))
    """
    place = {label: at for at, label in enumerate(labels)}
    places: dict[int, None] = {}
    repeated = foreign = 0
    for token in _tokens(text[:_LONGEST]):
        at = place.get(token, place.get(token.upper()) if len(token) == 1 and token.isascii() else None)
        if at is None:
            foreign += 1
        elif at in places:
            repeated += 1
        else:
            places[at] = None
    wanted = len(labels) if expected is None else min(expected, len(labels))
    read = len(places)
    malformed = read == 0 and wanted > 0
    rest = [at for at in range(len(labels)) if at not in places]
    return Order(
        places=(*places, *rest),
        read=read,
        faults=Faults(
            missing=0 if malformed else max(wanted - read, 0),
            repeated=repeated,
            foreign=foreign,
            malformed=int(malformed),
        ),
    )


def _tokens(text: str) -> list[str]:
    """Everything in a text that stands where a label should."""
    text = "\n".join(" ".join(line.split()) for line in text.splitlines())  # no long runs for patterns to try
    if text.startswith("```"):
        text = text.partition("\n")[2].removesuffix("```")
    if (listed := _of_json(text)) is not None:
        return listed
    inside = [part.strip(_FRAME) for group in _BRACKETS.findall(text) for part in re.split(r"[,>;]", group)]
    # A bracket with words in it is a remark, not a label.
    inside = [part for part in inside if part and len(part) <= 12 and " " not in part]
    if inside:
        return inside
    text = _OPENING.sub("", text, count=1)
    for split in _SPLITS:
        parts = [part.strip(_FRAME) for part in split.split(text)]
        parts = [part for part in parts if part]
        found = [match[1] for part in parts if (match := _PART.fullmatch(part))]
        # "A" and "I" are words as well: among words that are no labels a single one says nothing.
        if found and 2 * len(found) >= len(parts) and (split is not _SPLITS[2] or len(found) == len(parts)):
            return found
    return []


def _of_json(text: str) -> list[str] | None:
    """The labels of a JSON text with a list in it; None where the text is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((inner for inner in value.values() if isinstance(inner, list)), None)
    if not isinstance(value, list):
        return None
    return [label for element in value for label in _scalars(element)]


def _scalars(element: Any) -> Iterator[str]:
    """A label, or the first one of an object; anything else as text that is no label."""
    if isinstance(element, dict):
        element = next((inner for inner in element.values() if isinstance(inner, (str, int))), None)
    if isinstance(element, list) and len(element) == 1:  # [["C"], ["A"]]
        (element,) = element
    if isinstance(element, str):
        yield element.strip().strip("[]").strip()
    elif isinstance(element, int) and not isinstance(element, bool):
        yield str(element)
    else:
        yield "?"
