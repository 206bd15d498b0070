"""Input tables, checked and brought to internal numbers.

Suffixes: N = events, U = users, I = items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from recsys.errors import InputError
from recsys.pipelines.prepare.actions import ActionVocabulary, find_actions, names_of
from recsys.pipelines.prepare.bad_rows import BadRows
from recsys.pipelines.prepare.catalogue import clean_entities, numbered, vocabulary_of
from recsys.pipelines.prepare.columns import common_id_type
from recsys.pipelines.prepare.interactions import ACTION, UNKNOWN, clean_interactions, unite, with_masks
from recsys.pipelines.prepare.reading import Table, map_columns
from recsys.pipelines.prepare.settings import PrepareSettings
from recsys.pipelines.prepare.slates import clean_slates
from recsys.pipelines.prepare.user_content import user_readings

__all__ = ["Clean", "clean_tables"]

ORDER_CLOCK_BELOW = 300_000_000
"""A median timestamp below this (July 1979) counts places, not seconds."""

_BEFORE = "__before"
"""Numbers of users or items before rare ones are left out."""

_MILLISECONDS_ABOVE = 100_000_000_000  # as seconds, the year 5138


@dataclass(slots=True)
class Clean:
    """Input tables after every check."""

    events: pl.DataFrame
    """user, item, timestamp, yes, known, surface, value, time_known and the callers' columns, by (user, time, row)."""
    slates: pl.DataFrame | None
    """One row per item shown."""
    slate_columns: pl.DataFrame | None
    """The callers' other columns of slates, one row per slate."""
    users: pl.DataFrame | None
    items: pl.DataFrame | None
    user_ids: pl.Series
    """In internal order, as the item ids."""
    item_ids: pl.Series
    actions: ActionVocabulary
    surfaces: list[str]
    """Place 0 is the unknown surface."""
    clock: str
    max_timestamp: int
    counts: dict[str, int]
    dropped: dict[str, int]
    notes: list[str] = field(default_factory=list)


def clean_tables(given: Mapping[str, Table], settings: PrepareSettings) -> Clean:
    """Check, number, order and unite input tables.

    Args:
        given: ``interactions`` and, where there are, ``items``, ``users`` and ``impressions``.
        settings: what to do with them.

    Raises:
        InputError: the first thing that is wrong.
    """
    for asked, name in ((settings.item_features, "items"), (settings.user_features, "users")):
        if asked and name not in given:
            flag = f"--{name.removesuffix('s')}-features {','.join(asked)}"
            raise InputError(f"{flag}: there is no {name} table; give one with --{name} FILE")
    tables = map_columns(given, settings.columns)
    bad = BadRows(settings.bad_rows)
    events = clean_interactions(tables["interactions"], bad)
    if events.height == 0:
        raise InputError(f"{tables['interactions'].file}: every row is bad, none is left; check the table")
    items = clean_entities(tables["items"], "item_id", bad) if "items" in tables else None
    users = clean_entities(tables["users"], "user_id", bad) if "users" in tables else None
    flat, slate_columns = clean_slates(tables["impressions"], bad) if "impressions" in tables else (None, None)

    logs = [frame for frame in (events, flat) if frame is not None]
    actions = find_actions([frame[ACTION] for frame in logs], settings)
    strange = names_of(frame[UNKNOWN] for frame in logs if UNKNOWN in frame.columns) - set(actions.names)
    events = with_masks(events, actions)
    flat = with_masks(flat, actions) if flat is not None else None
    item_ids, user_ids = _vocabularies(tables, events, items, users, flat)
    num_rows = events.height
    events, num_united = unite(_filled(_in_numbers(events, user_ids, item_ids)))
    clean = Clean(
        events=events,
        slates=_in_numbers(flat, user_ids, item_ids) if flat is not None else None,
        slate_columns=slate_columns,
        users=users,
        items=items,
        user_ids=user_ids,
        item_ids=item_ids,
        actions=actions,
        surfaces=[],
        clock=settings.clock,
        max_timestamp=0,
        counts={"rows_read": tables["interactions"].frame.height, "rows_united": num_united},
        dropped=dict(bad.dropped),
    )
    assert num_rows == events.height + num_united
    if strange:
        clean.notes.append(f"The column unknown names what is never an action: {', '.join(sorted(strange)[:4])}.")
    _leave_out_rare(clean, settings)
    _look(clean, settings)
    return clean


def _vocabularies(
    tables: Mapping[str, Table],
    events: pl.DataFrame,
    items: pl.DataFrame | None,
    users: pl.DataFrame | None,
    flat: pl.DataFrame | None,
) -> tuple[pl.Series, pl.Series]:
    def ids(column: str, frames: Mapping[str, pl.DataFrame | None]) -> dict[str, pl.Series]:
        return {name: frame[column] for name, frame in frames.items() if frame is not None}

    soft = {name: table.from_text for name, table in tables.items()}
    item = ids("item_id", {"interactions": events, "items": items, "impressions": flat})
    user = ids("user_id", {"interactions": events, "users": users, "impressions": flat})
    item_kind = common_id_type(list(item.values()), [soft[name] for name in item])
    user_kind = common_id_type(list(user.values()), [soft[name] for name in user])
    # Items in the order of their own table; users only where they did something or were shown something.
    item_order = [item[name] for name in ("items", "interactions", "impressions") if name in item]
    user_order = [user[name] for name in ("interactions", "impressions") if name in user]
    return vocabulary_of(item_order, item_kind), vocabulary_of(user_order, user_kind)


def _in_numbers(frame: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series) -> pl.DataFrame:
    return numbered(numbered(frame, "user_id", user_ids, "user"), "item_id", item_ids, "item")


def _filled(events: pl.DataFrame) -> pl.DataFrame:
    """Optional columns, where the table lacks them."""
    defaults = {
        "value": pl.lit(None, dtype=pl.Float32),
        "surface": pl.lit(None, dtype=pl.String),
        "time_known": pl.lit(True),
    }
    return events.with_columns(default.alias(name) for name, default in defaults.items() if name not in events.columns)


def _leave_out_rare(clean: Clean, settings: PrepareSettings) -> None:
    """Leave out users and items with too few events, again and again until everyone left has enough."""
    if settings.min_user_events <= 0 and settings.min_item_events <= 0:
        return
    user_N, item_N = clean.events["user"].to_numpy(), clean.events["item"].to_numpy()
    alive_N = np.ones(len(user_N), dtype=np.bool_)
    while True:
        user_count_U = np.bincount(user_N[alive_N], minlength=len(clean.user_ids))
        item_count_I = np.bincount(item_N[alive_N], minlength=len(clean.item_ids))
        user_U = user_count_U >= settings.min_user_events
        item_I = item_count_I >= settings.min_item_events
        still_N = alive_N & user_U[user_N] & item_I[item_N]
        if (still_N == alive_N).all():
            break
        alive_N = still_N
    if not alive_N.any():
        raise InputError(
            f"no event is left with --min-user-events {settings.min_user_events} and "
            f"--min-item-events {settings.min_item_events}; choose smaller ones"
        )
    for what, kept, least in (("users", user_U, settings.min_user_events), ("items", item_I, settings.min_item_events)):
        if not kept.all():
            clean.dropped[f"{what} with fewer than {least} events"] = int((~kept).sum())
    if not alive_N.all():
        clean.dropped["events of users or items with too few"] = int((~alive_N).sum())
    kept_users, kept_items = pl.Series("user", np.flatnonzero(user_U)), pl.Series("item", np.flatnonzero(item_I))

    def renumbered(frame: pl.DataFrame) -> pl.DataFrame:
        for name, kept in (("user", kept_users), ("item", kept_items)):
            frame = numbered(frame.rename({name: _BEFORE}), _BEFORE, kept.cast(pl.UInt32), name)
        return frame.drop_nulls(["user", "item"])

    clean.events = renumbered(clean.events)
    clean.user_ids = clean.user_ids.gather(kept_users)
    clean.item_ids = clean.item_ids.gather(kept_items)
    if clean.slates is not None:
        slates = renumbered(clean.slates)
        lost = clean.slates.height - slates.height
        if lost:
            clean.dropped["slate rows of users or items with too few events"] = lost
        clean.slates = slates


def _look(clean: Clean, settings: PrepareSettings) -> None:
    """What the tables turn out to hold: surfaces, clock, counts and notes."""
    events, flat = clean.events, clean.slates
    names = events["surface"].drop_nulls().unique().to_list()
    times = [events["timestamp"].to_numpy().max()]
    if flat is not None and flat.height:
        names += flat["surface"].drop_nulls().unique().to_list()
        times += [flat["timestamp"].to_numpy().max(), flat["time"].to_numpy().max()]
    clean.surfaces = ["", *sorted(set(names) - {""})]
    if len(clean.surfaces) > 2**16:
        raise InputError(f"{len(clean.surfaces) - 1} different surfaces occur; check the column surface")
    clean.max_timestamp = int(max(times))
    median = float(np.median(events["timestamp"].to_numpy()))
    if settings.clock == "auto":
        clean.clock = "order" if median < ORDER_CLOCK_BELOW else "real"
    if clean.clock == "order":
        why = f"their median is {median:.0f}" if settings.clock == "auto" else "as asked for"
        clean.notes.append(f"Timestamps only count ({why}): there are no gaps between events and no time of day.")
    elif median > _MILLISECONDS_ABOVE:
        # Each finer unit counts a thousand times as far.
        thousands = min(int(math.log(median / _MILLISECONDS_ABOVE, 1000)) + 1, 3)
        unit = ("milliseconds", "microseconds", "nanoseconds")[thousands - 1]
        clean.notes.append(
            f"Timestamps look like {unit} (median {median:.0f}) but count as seconds; "
            f"divide them by {1000**thousands:,}, or make them datetimes."
        )
    bare = int((events["yes"] == 0).sum())
    clean.counts["bare_exposures"] = bare
    if len(clean.actions.names) == 1:
        name = clean.actions.names[0]
        shown = bare > 0 or (flat is not None and bool((flat["yes"] == 0).any()))
        rest = "others are bare exposures" if shown else "every event has it, so that there is nothing to rank by"
        clean.notes.append(f"Only one action occurs ({name}): {rest}.")
    for table, column, ids, label in (
        (clean.items, "item_id", clean.item_ids, "items"),
        (clean.users, "user_id", clean.user_ids, "users"),
    ):
        if table is not None:
            given = table.select(pl.col(column).cast(ids.dtype))
            known = pl.DataFrame({column: ids}).join(given, on=column, how="semi").height
            clean.counts[f"{label}_without_row"] = len(ids) - known
            if label == "users":
                clean.counts["user_rows_without_events"] = table.height - known
            met = ids.gather(events[label.removesuffix("s")].unique().sort())
            if not met.is_in(given[column].implode()).any():
                clean.notes.append(
                    f"None of the {label} in the events has a row in the {label} table (an id here is {met[0]!r}, "
                    f"there {table[column][0]!r}): are the ids written alike?"
                )
    user_readings(settings.user_features, clean.users)


def action_counts(clean: Clean) -> dict[str, dict[str, int]]:
    """How many events say yes to each action, and of how many it is known."""
    yes_N, known_N = clean.events["yes"].to_numpy(), clean.events["known"].to_numpy()
    return {
        name: {"yes": int((yes_N >> bit & 1).sum()), "known": int((known_N >> bit & 1).sum())}
        for bit, name in enumerate(clean.actions.names)
    }
