"""Long texts in pieces that fit a prompt: whole sentences where they fit, neighbours sharing a few words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recsys.errors import InputError, shown
from recsys.retrieval.rag.passage import estimated_tokens
from recsys.retrieval.rag.sentences import sentence_spans

__all__ = ["Chunk", "ChunkLimits", "chunks"]

_LEAST_TOKENS, _LEAST_CHARS = 8, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLimits:
    """How long a piece may be."""

    max_tokens: int = 128
    """At least 8, so that any single character fits; MiniLM-sized encoders read no more than 256."""
    max_chars: int = 1000
    overlap_tokens: int = 24
    """Most tokens at the end of a piece that the next one begins with; whole sentences only, none where the last is
    longer. 0 = none."""

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", _LEAST_TOKENS), ("max_chars", _LEAST_CHARS), ("overlap_tokens", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"ChunkLimits.{name} must be an integer of at least {least}, got {shown(value)}")
        if self.overlap_tokens >= self.max_tokens:
            raise InputError(
                f"ChunkLimits.overlap_tokens {self.overlap_tokens} must be below max_tokens {self.max_tokens}"
            )


@dataclass(frozen=True, slots=True)
class Chunk:
    """``text[begin:end]`` of what was cut."""

    begin: int
    end: int
    text: str
    tokens: int


def chunks(text: str, limits: ChunkLimits | None = None, count: Callable[[str], int] = estimated_tokens) -> list[Chunk]:
    """Cut a text. Every character that is no space is in some piece; pieces come in order and each within the limits.

    Args:
        text: any length; blank gives no piece.
        limits: None = the default ones.
        count: tokens of a text; at most 8 for a single character.
    """
    limits = limits or ChunkLimits()

    def fits(begin: int, end: int) -> bool:
        return end - begin <= limits.max_chars and count(text[begin:end]) <= limits.max_tokens

    pieces: list[tuple[int, int]] = []
    for begin, end in sentence_spans(text):
        pieces += _split(text, begin, end, fits)
    made: list[Chunk] = []
    first = 0  # of the pieces that are new in the chunk under way
    start = 0  # of its pieces, those shared with the chunk before included
    while first < len(pieces):
        while not fits(pieces[start][0], pieces[first][1]):
            start += 1  # what was to be shared leaves no room for what is new
        last = first
        while last + 1 < len(pieces) and fits(pieces[start][0], pieces[last + 1][1]):
            last += 1
        begin, end = pieces[start][0], pieces[last][1]
        made.append(Chunk(begin, end, text[begin:end], count(text[begin:end])))
        before, first, start = start, last + 1, last + 1
        while start - 1 > before and 0 < count(text[pieces[start - 1][0] : end]) <= limits.overlap_tokens:
            start -= 1
    return made


def _split(text: str, begin: int, end: int, fits: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Halve what is too long, at a space near its middle where there is one."""
    done: list[tuple[int, int]] = []
    waiting = [(begin, end)]
    while waiting:
        begin, end = waiting.pop()
        while begin < end and text[begin].isspace():
            begin += 1
        while begin < end and text[end - 1].isspace():
            end -= 1
        if begin == end:
            continue
        if end - begin == 1 or fits(begin, end):
            done.append((begin, end))
            continue
        middle, reach = (begin + end) // 2, (end - begin) // 4
        near = text.rfind(" ", middle - reach, middle)
        cut = near if near > begin else middle
        waiting += [(cut, end), (begin, cut)]
    return done
