"""The one error that a user's input may cause."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input from a caller: its text is one line saying what, where and what to do.

    The command line prints the line and exits with code 2; anything else is our own bug and keeps its traceback.
    """
