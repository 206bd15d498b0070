"""Business rules from a JSON file, as the command line takes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from recsys.errors import InputError, shown
from recsys.files import read_json
from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Rule, Where

__all__ = ["read_rules", "rule_of"]

KINDS: dict[str, type[Rule]] = {
    kind.__name__.lower(): kind for kind in (Where, Cap, MMR, Floor, Freshness, Boost, Pin, Explore)
}


def read_rules(path: Path) -> list[Rule]:
    """A list of rules such as ``[{"rule": "cap", "column": "brand", "n": 2}]``.

    Raises:
        InputError: one line naming the rule at fault and what is wrong with it.
    """
    given = read_json(path)
    if not isinstance(given, list):
        raise InputError(f'{path} must hold a list of rules such as [{{"rule": "cap", "column": "brand", "n": 2}}]')
    rules = []
    for number, fields in enumerate(given, start=1):
        try:
            rules.append(rule_of(fields))
        except InputError as error:
            raise InputError(f"{path}, rule {number}: {error}") from error
    return rules


def rule_of(fields: Any) -> Rule:
    """One rule from its fields, ``rule`` saying which it is.

    Raises:
        InputError: an unknown rule or field, or a value of another type.
    """
    named = fields.get("rule") if isinstance(fields, dict) else fields
    if not isinstance(fields, dict) or not isinstance(named, str) or named not in KINDS:
        raise InputError(f'"rule" must be one of {", ".join(KINDS)}, got {shown(named)}')
    kind = KINDS[named]
    rest = {name: value for name, value in fields.items() if name != "rule"}
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in rest.items():
        if name not in known:
            raise InputError(f"{named} has no field {shown(name)}; its fields are {', '.join(known)}")
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value)):
            raise InputError(f"{named}: {name} takes a plain value or a list of them, got {shown(value)}")
    missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in rest]
    if missing:
        raise InputError(f"{named}: it lacks {', '.join(missing)}")
    return kind(**rest)  # as the file has them: a text that spells a number stays one
