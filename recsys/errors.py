"""The one error that a user's input may cause, and those of a service under load or without its sources."""

from __future__ import annotations

__all__ = ["Closed", "InputError", "Overloaded", "SourceUnavailable"]


class InputError(ValueError):
    """Bad input from a caller: its text is one line saying what, where and what to do.

    The command line prints the line and exits with code 2; anything else is our own bug and keeps its traceback.
    """


class SourceUnavailable(RuntimeError):
    """A source of histories cannot be read or written now: no answer is given rather than one from half a history.

    Its text is one line saying which source, what failed and what to do. Worth trying again.
    """


class Overloaded(RuntimeError):
    """More requests wait than the queue may hold: this one was turned away at once, before any work was done."""


class Closed(RuntimeError):
    """The object was closed, or is closing, and takes no more calls."""
