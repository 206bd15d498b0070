"""What the preparation of a dataset can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.errors import InputError

__all__ = ["DEFAULT_NEGATIVES", "OUR_COLUMNS", "PrepareSettings", "parse_columns", "parse_names", "parse_time"]

DEFAULT_NEGATIVES = ("hide", "dislike", "hate", "report")

OUR_COLUMNS = (
    "user_id item_id timestamp action unknown value surface time_known title text "
    "slate_id item_ids actions surfaces times values"
).split()
"""Names that ``columns`` may map onto."""


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """``A,B`` as names; None stays None, an empty text is no name."""
    if text is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_columns(text: str | None) -> dict[str, str]:
    """``ours=theirs,ours=theirs`` as a mapping.

    Raises:
        InputError: a part without ``=``.
    """
    mapping = {}
    for part in parse_names(text) or ():
        ours, equals, theirs = part.partition("=")
        if not (equals and ours.strip() and theirs.strip()):
            raise InputError(f"--columns {part!r} must read ours=theirs, for example user_id=uid")
        mapping[ours.strip()] = theirs.strip()
    return mapping


def parse_time(flag: str, value: str | int | None) -> int | None:
    """An integer as it is, an ISO date or datetime as seconds (UTC where it names no zone).

    Raises:
        InputError: it is neither.
    """
    if value is None or isinstance(value, int):
        return value
    try:
        return int(value)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InputError(f"{flag} {value!r} is no time; give an integer or a date such as 2022-05-04") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"--{name.replace('_', '-')} {value} is not known; choose {' or '.join(choices)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSettings:
    """Settings of ``prepare``; the command line's flags under the same names."""

    split: str = "leave-one-out"
    """``leave-one-out``, or ``time`` with the two times below."""
    valid_from: int | None = None
    """Seconds (or whatever the timestamps count): the validation period begins here."""
    test_from: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column name -> the name it has in the tables."""
    negative: tuple[str, ...] | None = None
    """Actions that make no positive; None = those of hide, dislike, hate and report that occur."""
    positive: tuple[str, ...] | None = None
    """The only actions that make a positive; None = all that are not negative."""
    clock: str = "auto"
    """``real``, ``order`` (timestamps only count), or ``auto``."""
    bad_rows: str = "error"
    """``error`` stops at the first bad row, ``drop`` leaves bad rows out and counts them."""
    min_user_events: int = 0
    min_item_events: int = 0
    item_features: tuple[str, ...] = ()
    """Columns of the items table that the model may read besides the text."""
    user_features: tuple[str, ...] = ()
    text_encoder: tuple[str, ...] = ()
    """Folders of sentence-transformers models, or name=folder, whose vectors of the item texts join the content."""
    cold_items: float | None = None
    """Share of the items that are held out, chosen by a hash of their id; None = none."""

    def __post_init__(self) -> None:
        # Lists, comma-separated text and dates are taken too, as the command line has them.
        for name in ("negative", "positive", "item_features", "user_features"):
            given: Any = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, parse_names(given) if isinstance(given, str) else tuple(given))
        for name in ("valid_from", "test_from"):
            object.__setattr__(self, name, parse_time(f"--{name.replace('_', '-')}", getattr(self, name)))
        if isinstance(self.columns, str):
            object.__setattr__(self, "columns", parse_columns(self.columns))
        encoders: Any = self.text_encoder
        if encoders is None or isinstance(encoders, (str, Path)):
            encoders = parse_names(None if encoders is None else str(encoders)) or ()
        object.__setattr__(self, "text_encoder", tuple(str(entry) for entry in encoders))
        _one_of("split", self.split, ("leave-one-out", "time"))
        _one_of("clock", self.clock, ("auto", "real", "order"))
        _one_of("bad_rows", self.bad_rows, ("error", "drop"))
        for name in ("min_user_events", "min_item_events"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        for ours in self.columns:
            if ours not in OUR_COLUMNS:
                raise InputError(f"--columns maps onto {ours!r}, which is none of ours: {', '.join(OUR_COLUMNS)}")
        if self.split == "time":
            if self.valid_from is None or self.test_from is None:
                raise InputError("--split time needs both --valid-from T and --test-from T")
            if self.valid_from >= self.test_from:
                raise InputError(f"--valid-from {self.valid_from} must be before --test-from {self.test_from}")
        elif self.valid_from is not None or self.test_from is not None:
            raise InputError("--valid-from and --test-from belong to --split time; add it or leave them out")
        if self.cold_items is not None and not 0 < self.cold_items < 1:
            raise InputError(f"--cold-items {self.cold_items} must be a share above 0 and below 1, for example 0.1")
        both = set(self.positive or ()) & set(self.negative or ())
        if both:
            raise InputError(f"the action {min(both)!r} stands in both --positive and --negative; choose one")

    def to_json(self) -> dict[str, Any]:
        """The settings as the manifest keeps them: no path of this machine."""
        encoders = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self.text_encoder]
        return {
            "split": self.split,
            "valid_from": self.valid_from,
            "test_from": self.test_from,
            "columns": dict(self.columns),
            "negative": None if self.negative is None else list(self.negative),
            "positive": None if self.positive is None else list(self.positive),
            "clock": self.clock,
            "bad_rows": self.bad_rows,
            "min_user_events": self.min_user_events,
            "min_item_events": self.min_item_events,
            "item_features": list(self.item_features),
            "user_features": list(self.user_features),
            "text_encoder": encoders,
            "cold_items": self.cold_items,
        }
