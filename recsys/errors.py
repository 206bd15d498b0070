"""The one error that a user's input may cause, and those of a service under load or without its sources."""

from __future__ import annotations

from typing import Any

__all__ = ["Closed", "DamagedHistory", "InputError", "Overloaded", "SourceUnavailable", "shown"]

_MOST_SHOWN = 80


class InputError(ValueError):
    """Bad input from a caller: its text is one line saying what, where and what to do.

    The command line prints the line and exits with code 2; anything else is our own bug and keeps its traceback.
    """


class SourceUnavailable(RuntimeError):
    """A source of histories cannot be read or written now: no answer is given rather than one from half a history.

    Its text is one line saying which source, what failed and what to do. Worth trying again.
    """


class DamagedHistory(SourceUnavailable):
    """A source answers, but holds events of a user that cannot be read; others are not concerned."""


class Overloaded(RuntimeError):
    """More requests wait than the queue may hold: this one was turned away at once, before any work was done."""


class Closed(RuntimeError):
    """The object was closed, or is closing, and takes no more calls."""


def shown(value: Any) -> str:
    """A caller's value as an error may quote it: one line, not long.

    >>> shown("i" * 200)[-6:], shown(7)
    ("iiii'…", '7')
    """
    if isinstance(value, (str, bytes, bytearray)) and len(value) > _MOST_SHOWN:
        return f"{value[:_MOST_SHOWN]!r}…"
    if isinstance(value, int) and abs(value) >= 10**_MOST_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (list, tuple, set, frozenset, dict)) and len(value) > _MOST_SHOWN:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer too long to be written out, inside of something
        return f"a {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
