"""The rules of a request, checked against what answers it.

Suffixes: C = candidates, A = actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError, shown
from recsys.retrieval.rules.rule import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Rule, Where

if TYPE_CHECKING:
    from recsys.retrieval.request import Request
    from recsys.retrieval.rules.item_table import Allowed
    from recsys.retrieval.snapshot import Snapshot

__all__ = ["RulePlan", "check_rules"]

Ints = NDArray[np.int64]
Kind = TypeVar("Kind", bound=Rule)


@dataclass(frozen=True, slots=True)
class RulePlan:
    """The rules of one request by kind, in internal numbers where they name items."""

    allowed: Allowed | None
    """Items that pass the filters; None where there are none."""
    pins: dict[int, int]
    """Internal item id at a place from 0; those that the request forbids not yet taken out."""
    floors: tuple[Floor, ...]
    shifts: tuple[tuple[Boost, Ints] | Freshness, ...]
    """Changes of the score, with the boosted items."""
    caps: tuple[Cap, ...]
    mmr: MMR | None
    explore: Explore | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, snapshot: Snapshot, request: Request) -> RulePlan:
        """Check and translate.

        Raises:
            InputError: a column or action that is not there, or a score that this request does not have.
        """
        rules, table = request.rules, snapshot.item_table
        filters = _of(rules, Where)
        for cap in _of(rules, Cap):
            table.check_groups(cap.column)
        for fresh in _of(rules, Freshness):
            table.check_times(fresh.column, clock=snapshot.bundle.vocabulary.clock)
        for floor in _of(rules, Floor):
            if floor.on == "retrieval" and len(set(request.retrievers)) > 1:
                raise InputError("Floor: scores of several retrievers do not compare; name one, or an action")
            if floor.on == "rank_by" and request.rank_by is None:
                raise InputError("Floor: on='rank_by' needs rank_by, the action or weights to order by")
            if floor.action is not None and floor.action not in snapshot.actions:
                raise InputError(f"Floor: this model ranks by {list(snapshot.actions)}, not by {shown(floor.action)}")
            if floor.action is not None and not request.rank:
                raise InputError("Floor: a floor on an action needs rank=True")
        pins, notes = _of(rules, Pin), list[str]()
        item = snapshot.bundle.vocabulary.items.index([pin.item for pin in pins])
        places = dict[int, int]()
        for pin, found in zip(pins, item.tolist(), strict=True):
            if found < 0:
                notes.append(f"pinned item {shown(pin.item)} is not in the catalogue")
            elif found in places.values():
                raise InputError(f"Pin: item {shown(pin.item)} is pinned twice")
            else:
                places[pin.place - 1] = found
        shifts: list[tuple[Boost, Ints] | Freshness] = []
        for rule in rules:
            if isinstance(rule, Boost):
                shifts.append((rule, snapshot.bundle.vocabulary.items.index(rule.items)))
            elif isinstance(rule, Freshness):
                shifts.append(rule)
        return cls(
            allowed=table.allowed(filters) if filters else None,
            pins=places,
            floors=_of(rules, Floor),
            shifts=tuple(shifts),
            caps=_of(rules, Cap),
            mmr=next(iter(_of(rules, MMR)), None),
            explore=next(iter(_of(rules, Explore)), None),
            notes=tuple(notes),
        )

    @property
    def needs_pool(self) -> bool:
        """Whether a candidate further back may come first, so that there must be some to choose from."""
        return bool(self.shifts) or self.mmr is not None or self.explore is not None

    @property
    def may_run_short(self) -> bool:
        """Whether candidates may be left out after they were found."""
        return bool(self.floors or self.caps or self.pins)

    def allow(self, allow_N: Ints | None, exclude_E: Ints) -> tuple[Ints | None, int, list[str]]:
        """What the filters leave of a request's allow list, how many of them are not excluded, and what to say."""
        if self.allowed is None:
            raise AssertionError("only for a plan with filters")
        mask_I = self.allowed.mask_I
        ids_N = self.allowed.ids_N if allow_N is None else allow_N[mask_I[allow_N]]
        of = len(mask_I) if allow_N is None else len(allow_N)
        if allow_N is None:
            num_out = int(mask_I[exclude_E].sum())
        else:
            num_out = len(np.intersect1d(ids_N, exclude_E, assume_unique=True))
        return ids_N, len(ids_N) - num_out, [f"filters on item columns let {len(ids_N)} of {of} items pass"]


def check_rules(rules: Sequence[Rule], k: int) -> None:
    """Refuse rules that contradict each other.

    Raises:
        InputError: something that is no rule, two of a kind that acts once, a pin beyond the page.
    """
    for rule in rules:
        if not isinstance(rule, Rule):
            raise InputError(f"rules must be rules such as Cap('category', n=2), got {shown(rule)}")
    for kind in (MMR, Explore):
        if len(_of(rules, kind)) > 1:
            raise InputError(f"rules hold {kind.__name__} {len(_of(rules, kind))} times; give one")
    places = set[int]()
    for pin in _of(rules, Pin):
        if pin.place > k:
            raise InputError(f"Pin: place {pin.place} is beyond the {k} items asked for")
        if pin.place in places:
            raise InputError(f"Pin: two items are pinned to place {pin.place}")
        places.add(pin.place)


def _of(rules: Sequence[Rule], kind: type[Kind]) -> tuple[Kind, ...]:
    return tuple(rule for rule in rules if isinstance(rule, kind))
