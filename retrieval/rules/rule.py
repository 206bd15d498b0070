"""Business rules as plain values. What can be checked without a catalogue is checked when a rule is made.

Whatever order they are given in, rules apply in one order: filters (:class:`Where`), pins (:class:`Pin`), floors
(:class:`Floor`), changes of the score (:class:`Boost`, :class:`Freshness`, in the order given), and then one choice
after the other until k items are chosen, in which :class:`Cap`, :class:`MMR` and :class:`Explore` act together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from numbers import Real
from typing import Any, Literal, cast

import numpy as np

from recsys.errors import InputError, shown
from recsys.retrieval.limits import taken
from recsys.vocabulary import id_text

__all__ = [
    "LARGEST",
    "MMR",
    "Boost",
    "Cap",
    "Explore",
    "Floor",
    "Freshness",
    "Pin",
    "Rule",
    "Value",
    "Where",
    "is_number",
]

LARGEST = 1e30
"""Numbers of rules are at most this large, so that sums of scores stay finite."""
_SEED_BITS = 128
Value = str | bool | int | float | date | datetime
"""What a column of items is compared with."""


class Rule:
    """What all rules are; :attr:`recsys.retrieval.request.Request.rules` takes any number of them."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Where(Rule):
    """Only items whose column has one of some values, or a value within bounds.

    Of a list column any one value suffices. Dates are compared as points in time; texts in ISO form stand for them.
    """

    column: str
    values: Value | Iterable[Value] | None = None
    """One value or several; kept as a tuple."""
    at_least: Value | None = None
    at_most: Value | None = None
    """Bounds, both included, of numbers or dates; instead of values."""
    negate: bool = False
    """The other items: those with none of the values, or none within the bounds."""
    missing: bool = False
    """Whether items without a value pass, negated or not."""

    def __post_init__(self) -> None:
        _check_column(self)
        bounded = self.at_least is not None or self.at_most is not None
        if (self.values is None) != bounded:
            raise InputError(
                f"Where({shown(self.column)}) needs values to be equal to, or at_least and at_most; it got "
                + ("both" if bounded else "neither")
            )
        if isinstance(self.values, Mapping):
            raise InputError(
                f"Where({shown(self.column)}) compares with texts, numbers and dates, not with {shown(self.values)}"
            )
        if self.values is not None:
            given = self.values
            alone = isinstance(given, (str, bytes)) or not isinstance(given, Iterable)
            listed = [given] if alone else taken(f"Where({shown(self.column)})", given)
            plain = tuple(one.item() if isinstance(one, np.generic) else one for one in listed)
            object.__setattr__(self, "values", plain)
        for name in ("at_least", "at_most"):
            if isinstance(getattr(self, name), np.generic):
                object.__setattr__(self, name, getattr(self, name).item())
        for value in (*self.operands, *self.bounds):
            if value is None or not isinstance(value, (str, int, float, date)):
                raise InputError(
                    f"Where({shown(self.column)}) compares with texts, numbers and dates, not with {shown(value)}"
                )
            if isinstance(value, str) and id_text(value) is None:
                raise InputError(f"Where({shown(self.column)}) cannot compare with {shown(value)}, which no file holds")
            if not isinstance(value, (str, date, bool)) and not is_number(value, 1e300):
                raise InputError(
                    f"Where({shown(self.column)}) cannot compare with {shown(value)}; give a finite number"
                )
        for name in ("negate", "missing"):
            _check_bool(self, name)

    @property
    def operands(self) -> tuple[Value, ...]:
        """The values, as a tuple."""
        return self.values if isinstance(self.values, tuple) else ()

    @property
    def bounds(self) -> tuple[Value, ...]:
        """The bounds that are given."""
        return tuple(bound for bound in (self.at_least, self.at_most) if bound is not None)


@dataclass(frozen=True, slots=True)
class Cap(Rule):
    """At most ``n`` items of a page with the same value in a column; a list column counts for each of its values."""

    column: str
    n: int
    missing: Literal["free", "group"] = "free"
    """Items without a value: as many as come, or a group of their own with the same cap."""

    def __post_init__(self) -> None:
        _check_column(self)
        _check_count(self, "n")
        if not _is_word(self.missing, "free", "group"):
            raise InputError(f"Cap.missing must be 'free' or 'group', got {shown(self.missing)}")


@dataclass(frozen=True, slots=True)
class MMR(Rule):
    """Diversity by maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998).

    Each place takes the candidate with the largest lam · score − (1 − lam) · (largest cosine with an item chosen
    before), the second term being 0 while nothing is chosen. Cosines are of item vectors.
    """

    lam: float
    """λ from 0 (diversity alone) to 1 (the score alone)."""
    scale: bool = True
    """Bring the candidates' scores to 0 … 1 first, as cosines are; False takes them as they are."""

    def __post_init__(self) -> None:
        _check_number(self, "lam")
        _check_bool(self, "scale")
        if not 0 <= self.lam <= 1:
            raise InputError(f"MMR.lam must be from 0 to 1, got {shown(self.lam)}")


@dataclass(frozen=True, slots=True)
class Floor(Rule):
    """Only candidates with at least this score, before boosts."""

    at_least: float
    on: Literal["retrieval", "rank_by", "action"] = "retrieval"
    """The score of the retriever, the weighted sum of ``rank_by``, or the probability of ``action``."""
    action: str | None = None

    def __post_init__(self) -> None:
        _check_number(self, "at_least")
        if not _is_word(self.on, "retrieval", "rank_by", "action"):
            raise InputError(f"Floor.on must be 'retrieval', 'rank_by' or 'action', got {shown(self.on)}")
        if (self.on == "action") != (self.action is not None):
            raise InputError("Floor needs the name of an action with on='action', and only then")
        if self.action is not None and not isinstance(self.action, str):
            raise InputError(f"Floor.action must be the name of an action, got {shown(self.action)}")


@dataclass(frozen=True, slots=True)
class Freshness(Rule):
    """Lifts new items: f = 2^(−age / half_life), from 1 for an item of this moment to 0.

    The age is the time of the request less the column, never below 0; an item without a time gets f = 0.
    """

    column: str
    """A date, a datetime (without a zone: UTC), or a number that counts as the data's timestamps do."""
    half_life: float
    """In seconds, or in steps where the data has no real clock."""
    weight: float = 1.0
    mode: Literal["add", "multiply"] = "add"
    """score + weight · f, or score + |score| · weight · f, which lifts negative scores too."""

    def __post_init__(self) -> None:
        _check_column(self)
        for name in ("half_life", "weight"):
            _check_number(self, name)
        if self.half_life <= 0:
            raise InputError(f"Freshness.half_life must be positive, got {shown(self.half_life)}")
        if not _is_word(self.mode, "add", "multiply"):
            raise InputError(f"Freshness.mode must be 'add' or 'multiply', got {shown(self.mode)}")


@dataclass(frozen=True, slots=True)
class Boost(Rule):
    """Adds ``weight`` to the score of some items where they are candidates; below 0 lowers them."""

    items: Iterable[Any]
    """The caller's ids; unknown ones are ignored. Kept as a tuple."""
    weight: float

    def __post_init__(self) -> None:
        if isinstance(self.items, (str, bytes)) or not isinstance(self.items, Iterable):
            raise InputError(f"Boost.items must be a collection of item ids, got {shown(self.items)}")
        object.__setattr__(self, "items", tuple(taken("Boost.items", self.items)))
        _check_number(self, "weight")


@dataclass(frozen=True, slots=True)
class Pin(Rule):
    """Shows an item at a place, whatever its score, unless the request's lists or filters forbid it."""

    item: Any
    """The caller's id; an unknown one is ignored, and a note says so."""
    place: int
    """From 1. On a shorter page the item comes last."""

    def __post_init__(self) -> None:
        _check_count(self, "place")


@dataclass(frozen=True, slots=True)
class Explore(Rule):
    """Leaves a part of the choice to chance, the same for the same seed, user and bundle.

    Give ``epsilon`` or ``temperature``. :attr:`recsys.retrieval.page.Hit.propensity` is the probability with which an
    item was taken for its place, given the places above it; their product is that of the page.
    """

    seed: int
    """Another one for every request or period. Without a user id it decides alone."""
    epsilon: float | None = None
    """Probability of a place to be filled by any remaining candidate, all alike, instead of the best one."""
    temperature: float | None = None
    """Each place is drawn with probability ∝ exp(score / temperature): Plackett–Luce. Below 1 nearer to the best."""

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed.bit_length() > _SEED_BITS:
            raise InputError(f"Explore.seed must be an integer of at most {_SEED_BITS} bits, got {shown(self.seed)}")
        if (self.epsilon is None) == (self.temperature is None):
            raise InputError("Explore needs epsilon or temperature, and not both")
        if self.epsilon is not None:
            _check_number(self, "epsilon")
            if not 0 <= self.epsilon <= 1:
                raise InputError(f"Explore.epsilon must be from 0 to 1, got {shown(self.epsilon)}")
        if self.temperature is not None:
            _check_number(self, "temperature")
            if self.temperature <= 0:
                raise InputError(f"Explore.temperature must be positive, got {shown(self.temperature)}")


def is_number(value: Any, largest: float = LARGEST) -> bool:
    """Whether it is a number of that size at most: no NaN, no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-largest <= cast(float, value) <= largest)


def _check_column(rule: Where | Cap | Freshness) -> None:
    if not isinstance(rule.column, str):
        raise InputError(f"{type(rule).__name__}.column must be the name of a column, got {shown(rule.column)}")


def _check_count(rule: Rule, name: str) -> None:
    value = getattr(rule, name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:
        raise InputError(f"{type(rule).__name__}.{name} must be a positive integer, got {shown(value)}")


def _check_bool(rule: Rule, name: str) -> None:
    if not isinstance(getattr(rule, name), bool):
        raise InputError(f"{type(rule).__name__}.{name} must be True or False, got {shown(getattr(rule, name))}")


def _is_word(value: Any, *words: str) -> bool:
    return isinstance(value, str) and value in words  # an array would compare itself with each


def _check_number(rule: Rule, name: str) -> None:
    """Refuse what is none, and keep it as a float: numpy multiplies with no larger integers than its own."""
    value = getattr(rule, name)
    if not is_number(value):
        raise InputError(f"{type(rule).__name__}.{name} must be a finite number, got {shown(value)}")
    object.__setattr__(rule, name, float(value))
