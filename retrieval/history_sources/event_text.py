"""Events and ids as short ASCII texts, the form in which stores keep them.

A text is JSON, so that an id keeps its type (``"7"`` is a string, ``7`` a number) and any string survives, and equal
events have equal texts. It holds the caller's own words only, never an internal number of some bundle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recsys.errors import InputError
from recsys.events import MOST_TIME, Event, is_integer

__all__ = ["MAX_ACTIONS", "MAX_APPEND", "MAX_CHARACTERS", "event_texts", "events_of", "id_text", "plain_id"]

MAX_APPEND = 100_000
"""Events of one append, which is one transaction."""
MAX_CHARACTERS = 4096
"""Of an id or a name."""
MAX_ACTIONS = 64
"""Names in ``actions``, and in ``unknown``, of one event."""

_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode  # a text ends with its bracket; a store may mark it behind that


def plain_id(value: Any, what: str) -> str | int:
    """An id as a plain string or integer.

    Raises:
        InputError: it is neither, or longer than any id needs to be.
    """
    if isinstance(value, str) and len(value) <= MAX_CHARACTERS:
        return str(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and abs(int(value)) < 2**126:
        return int(value)
    raise InputError(
        f"{what}: an id is an integer or a string of at most {MAX_CHARACTERS:,} characters, got {_short(value)}"
    )


def id_text(value: Any, what: str = "user_id") -> str:
    """The text of an id: different for different ids, also where they differ in type only.

    Raises:
        InputError: see :func:`plain_id`.
    """
    return _encode(plain_id(value, what))


def event_texts(events: Sequence[Event]) -> list[str]:
    """The texts of checked events, so that nothing is stored that could not be read.

    Raises:
        InputError: too many at once, or an event with a field that cannot be meant; its number stands in the line.
    """
    if isinstance(events, (str, bytes, Event)) or not isinstance(events, Sequence):
        raise InputError(f"events must be a sequence of Event, got {_short(events)}")
    if len(events) > MAX_APPEND:
        raise InputError(f"{len(events):,} events are more than one append takes; append {MAX_APPEND:,} at a time")
    return [_event_text(event, f"event {number}") for number, event in enumerate(events)]


def events_of(texts: Iterable[str | bytes]) -> list[Event]:
    """The events of texts.

    Raises:
        ValueError: a text is none of :func:`event_texts`.
    """
    return [_event(_decode(text if isinstance(text, str) else text.decode("ascii"))[0]) for text in texts]


def _event_text(event: Event, where: str) -> str:
    if not isinstance(event, Event):
        raise InputError(f"{where}: must be an Event, got {_short(event)}")
    item, time = plain_id(event.item_id, f"{where}: item_id"), event.timestamp
    if time is not None:
        if not is_integer(time) or not abs(int(time)) < MOST_TIME:  # what no request could read again
            raise InputError(f"{where} (item {item!r}): timestamp must be an integer below 2^62, got {_short(time)}")
        time = int(time)
    if event.surface is not None and not _is_name(event.surface):
        raise InputError(f"{where} (item {item!r}): surface must be a short string, got {_short(event.surface)}")
    actions = _names(event.actions, f"{where} (item {item!r}): actions")
    unknown = _names(event.unknown, f"{where} (item {item!r}): unknown")
    fields = [item, time, actions, event.surface, _value(event.value, f"{where} (item {item!r})"), unknown]
    while fields[-1] is None or fields[-1] == []:
        fields.pop()  # most events hold none of the last ones; the item always stays
    return _encode(fields)


def _event(fields: Any) -> Event:
    if not isinstance(fields, list) or not 1 <= len(fields) <= 6:
        raise ValueError(f"no event: {_short(fields)}")
    item, time, actions, surface, value, unknown = fields + [None, [], None, None, []][len(fields) - 1 :]
    if not (
        isinstance(item, (str, int))
        and isinstance(time, (int, type(None)))
        and isinstance(actions, (str, list))
        and isinstance(surface, (str, type(None)))
        and isinstance(value, (float, type(None)))
        and isinstance(unknown, (str, list))
    ):
        raise ValueError(f"no event: {_short(fields)}")
    return Event(
        item_id=item,
        timestamp=time,
        actions=actions if isinstance(actions, str) else tuple(actions),
        surface=surface,
        value=value,
        unknown=unknown if isinstance(unknown, str) else tuple(unknown),
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_CHARACTERS


def _names(given: Any, where: str) -> str | list[str]:
    if isinstance(given, str):
        if _is_name(given):
            return str(given)
    elif isinstance(given, Iterable) and not isinstance(given, bytes):
        names = list(given)
        if len(names) <= MAX_ACTIONS and all(_is_name(name) for name in names):
            return [str(name) for name in names]
    raise InputError(f"{where} must be a name or at most {MAX_ACTIONS} names, got {_short(given)}")


def _value(given: Any, where: str) -> float | None:
    if given is None:
        return None
    try:
        if not isinstance(given, (bool, str, bytes)):
            number = float(given)
            return None if math.isnan(number) else number  # unknown, as in a table
    except (TypeError, ValueError, OverflowError):
        pass  # said below
    raise InputError(f"{where}: value must be a number, got {_short(given)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({type(value).__name__})"
