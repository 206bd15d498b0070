"""What people did, as bit masks: which actions happened, and which the log would have recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from recsys.errors import InputError
from recsys.events import MOST_ACTIONS
from recsys.pipelines.prepare.columns import is_text
from recsys.pipelines.prepare.reading import Table
from recsys.pipelines.prepare.settings import DEFAULT_NEGATIVES, PrepareSettings
from recsys.vocabulary import EXPOSURE_NAMES

__all__ = ["ActionVocabulary", "action_key", "find_actions", "key_names", "names_of"]


def action_key(table: Table, column: str) -> pl.Expr:
    """One text per row that names its actions, joined by ``+``, whatever the form of the column.

    Raises:
        InputError: the column holds neither names nor lists of names.
    """
    kind = table.frame.schema[column]
    if kind == pl.Null:
        return pl.lit(None, dtype=pl.String).alias(column)
    if is_text(kind):
        return pl.col(column).cast(pl.String)
    if isinstance(kind, (pl.List, pl.Array)) and (is_text(kind.inner) or kind.inner == pl.Null):
        as_list = pl.col(column).arr.to_list() if isinstance(kind, pl.Array) else pl.col(column)
        return as_list.cast(pl.List(pl.String)).list.join("+", ignore_nulls=True)
    raise table.wrong_type(column, "action names: one, several joined by +, or a list of them")


def key_names(key: str | None) -> tuple[str, ...]:
    """Action names of one key, without the words for a bare exposure. A JSON list (in a CSV) is read too."""
    if key is None:
        return ()
    parts = key.split("+")
    if key.startswith("[") and key.endswith("]"):
        try:
            parts = [part for name in json.loads(key) for part in str(name).split("+")]
        except json.JSONDecodeError:
            pass  # an action whose name happens to stand in brackets
    names = (part.strip() for part in parts)
    return tuple(dict.fromkeys(name for name in names if name.lower() not in EXPOSURE_NAMES))


def names_of(keys: Iterable[pl.Series]) -> set[str]:
    """The names in columns of keys."""
    return {name for series in keys for key in series.drop_nulls().unique().to_list() for name in key_names(key)}


@dataclass(frozen=True, slots=True)
class ActionVocabulary:
    """The actions of a dataset, in bit order, and which of them make a positive."""

    names: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]

    @property
    def every(self) -> int:
        """Bits of all actions."""
        return (1 << len(self.names)) - 1

    def mask(self, names: Iterable[str]) -> int:
        """Bits of names; one that is no action has none."""
        return sum(1 << self.names.index(name) for name in set(names) if name in self.names)

    @property
    def positive_mask(self) -> int:
        return self.mask(self.positives)

    def bits(self, keys: pl.Series) -> pl.Series:
        """Masks of a column of keys. There are few distinct ones, so only those are taken apart."""
        distinct = keys.drop_nulls().unique().to_list()
        masks = [self.mask(key_names(key)) for key in distinct]
        return keys.replace_strict(distinct, masks, default=0, return_dtype=pl.UInt32)


def find_actions(keys: Iterable[pl.Series], settings: PrepareSettings) -> ActionVocabulary:
    """The vocabulary of everything that happened, sorted by name.

    Raises:
        InputError: nothing happened at all, too much did, a flag names an action that never occurs, or no positive
            is left.
    """
    seen = names_of(keys)
    names = tuple(sorted(seen))
    if not names:
        raise InputError(
            "no action occurs in any row, only bare exposures; nothing can be learnt: check the column action, "
            "row 1 on, or name it with --columns action=THEIRS"
        )
    if len(names) > MOST_ACTIONS:
        raise InputError(
            f"{len(names)} different actions occur ({', '.join(names[:4])}, ...), at most {MOST_ACTIONS} are possible; "
            "check the column action, or join rare ones"
        )
    for flag, given in (("--negative", settings.negative), ("--positive", settings.positive)):
        for name in given or ():
            if name not in seen:
                raise InputError(f"{flag} {name}: no such action occurs; the actions are {', '.join(names)}")
    negative = DEFAULT_NEGATIVES if settings.negative is None else settings.negative
    negatives = tuple(name for name in names if name in negative and name not in (settings.positive or ()))
    if settings.positive is not None:
        positives = tuple(name for name in names if name in settings.positive)
    else:
        positives = tuple(name for name in names if name not in negatives)
    if not positives:
        raise InputError(
            f"every action that occurs ({', '.join(names)}) is negative, so that no event is a positive; "
            "name some with --positive"
        )
    return ActionVocabulary(names, positives, negatives)
