"""Business rules from a JSON file, as the command line takes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from recsys.errors import InputError
from recsys.files import read_json
from recsys.retrieval.rules import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Rule, Where

__all__ = ["read_rules", "rule_of"]

KINDS: dict[str, type[Rule]] = {
    kind.__name__.lower(): kind for kind in (Where, Cap, MMR, Floor, Freshness, Boost, Pin, Explore)
}

_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors:.*value: ", re.IGNORECASE
)
"""What the parser says where a field takes several types."""


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
        raise InputError(f'"rule" must be one of {", ".join(KINDS)}, got {named!r}')
    kind = KINDS[named]
    rest = {name: value for name, value in fields.items() if name != "rule"}
    for name, value in rest.items():
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value)):
            raise InputError(f"{named}: {name} takes a plain value or a list of them, got {value!r}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=True)
    try:
        parser.parse_object(rest)
    except ArgumentError as error:
        raise InputError(f"{named}: {_plain(str(error))}") from error
    return kind(**rest)  # as the file has them: a text that spells a number stays one


def _plain(message: str) -> str:
    """The parser's message on one line, types by their names."""
    text = " ".join(message.split()).removeprefix("Parser key ").replace("typing.", "").replace("datetime.", "")
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(_UNION, r"Expected one of \1. Got value: ", text)
    text = re.sub(r"<class 'collections.abc.Iterable'>|collections.abc.Iterable\[[^\]]*\]", "list", text)
    return text.replace("the following arguments are required: ", "it lacks ")
