"""From input tables to the folder of a prepared dataset. The command line and the Python API both come through here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.dataset import Dataset, offsets_of
from recsys.errors import InputError
from recsys.files import atomic_folder, sha256_file, write_json
from recsys.manifest import FORMAT, FORMAT_VERSION, MANIFEST_FILE, data_hash_of
from recsys.pipelines.prepare.actions import ActionVocabulary, find_actions
from recsys.pipelines.prepare.bad_rows import BadRows
from recsys.pipelines.prepare.catalogue import clean_entities, entity_table, numbered, vocabulary_of
from recsys.pipelines.prepare.columns import common_id_type
from recsys.pipelines.prepare.interactions import (
    ACTION,
    clean_interactions,
    packed_events,
    unite,
    with_masks,
)
from recsys.pipelines.prepare.reading import Table, as_frame, map_columns
from recsys.pipelines.prepare.settings import PrepareSettings
from recsys.pipelines.prepare.splits import Split, leave_one_out, split_by_time

__all__ = ["Clean", "check_tables", "clean_tables", "prepare_frames", "prepare_tables"]

ORDER_CLOCK_BELOW = 300_000_000
"""A median timestamp below this (July 1979) counts places, not seconds."""


@dataclass(slots=True)
class Clean:
    """Input tables after every check, in internal numbers."""

    events: pl.DataFrame
    """Ordered by (user, time, row), equal rows united."""
    user_ids: pl.Series
    item_ids: pl.Series
    users: pl.DataFrame | None
    items: pl.DataFrame | None
    actions: ActionVocabulary
    surfaces: list[str]
    """Place 0 is the unknown surface."""
    clock: str
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
    tables = map_columns(given, settings.columns)
    bad = BadRows(settings.bad_rows)
    events = clean_interactions(tables["interactions"], bad)
    if events.height == 0:
        raise InputError(
            f"{tables['interactions'].file}: no usable row is left after dropping bad ones; check the table"
        )
    items = clean_entities(tables["items"], "item_id", bad) if "items" in tables else None
    users = clean_entities(tables["users"], "user_id", bad) if "users" in tables else None
    actions = find_actions([events[ACTION]], settings)

    soft = {name: table.from_text for name, table in tables.items()}
    with_items = [("interactions", events), *([("items", items)] if items is not None else [])]
    with_users = [("interactions", events), *([("users", users)] if users is not None else [])]
    item_kind = common_id_type([frame["item_id"] for _, frame in with_items], [soft[name] for name, _ in with_items])
    user_kind = common_id_type([frame["user_id"] for _, frame in with_users], [soft[name] for name, _ in with_users])
    item_ids = vocabulary_of([frame["item_id"] for _, frame in reversed(with_items)], item_kind)
    user_ids = vocabulary_of([events["user_id"]], user_kind)

    num_rows = events.height
    events = with_masks(events, actions)
    for name, kind in (("value", pl.Float32), ("surface", pl.String), ("time_known", pl.Boolean)):
        if name not in events.columns:
            events = events.with_columns(pl.lit(True if name == "time_known" else None, dtype=kind).alias(name))
    events = numbered(events, "user_id", user_ids, "user")
    events = numbered(events, "item_id", item_ids, "item")
    events, num_united = unite(events)
    surfaces = ["", *sorted(events["surface"].drop_nulls().unique().to_list())]
    median = float(events["timestamp"].median() or 0)
    clock = settings.clock if settings.clock != "auto" else ("order" if median < ORDER_CLOCK_BELOW else "real")
    counts = {"rows_read": num_rows, "rows_united": num_united}
    return Clean(events, user_ids, item_ids, users, items, actions, surfaces, clock, counts, dict(bad.dropped))


def check_tables(given: Mapping[str, Table], settings: PrepareSettings) -> dict[str, Any]:
    """Every check of the preparation without writing anything; returns what the tables hold, for people.

    Raises:
        InputError: the first thing that is wrong.
    """
    clean = clean_tables(given, settings)
    return {
        "rows": sum(table.frame.height for table in given.values()),
        "users": len(clean.user_ids),
        "items": len(clean.item_ids),
        "events": clean.events.height,
        "actions": ", ".join(clean.actions.names),
        "positives": ", ".join(clean.actions.positives),
        "surfaces": ", ".join(clean.surfaces[1:]) or "none",
        "clock": clean.clock,
        **{f"dropped: {reason}": count for reason, count in clean.dropped.items()},
    }


def _split(clean: Clean, offsets_U1: NDArray[np.int64], settings: PrepareSettings) -> Split:
    positive_N = (clean.events["yes"].to_numpy() & clean.actions.positive_mask) != 0
    if settings.split == "leave-one-out":
        return leave_one_out(offsets_U1, positive_N)
    assert settings.valid_from is not None and settings.test_from is not None
    return split_by_time(
        offsets_U1,
        positive_N,
        clean.events["timestamp"].to_numpy(),
        valid_from=settings.valid_from,
        test_from=settings.test_from,
    )


def prepare_tables(given: Mapping[str, Table], output: Path, settings: PrepareSettings) -> Dataset:
    """Write the prepared dataset of input tables; nothing appears where anything is wrong.

    Raises:
        InputError: the first thing that is wrong.
    """
    with atomic_folder(output, marker=MANIFEST_FILE) as folder:
        clean = clean_tables(given, settings)
        offsets_U1 = offsets_of(clean.events["user"].to_numpy(), len(clean.user_ids))
        split = _split(clean, offsets_U1, settings)
        splits = pl.DataFrame(
            {"train_end": split.train_end_U, "valid_at": split.valid_at_U, "test_at": split.test_at_U},
            schema={"train_end": pl.Int64, "valid_at": pl.Int64, "test_at": pl.Int64},
        )
        packed_events(clean.events, clean.surfaces).write_parquet(folder / "events.parquet")
        entity_table(clean.user_ids, "user_id", clean.users).write_parquet(folder / "users.parquet")
        entity_table(clean.item_ids, "item_id", clean.items).write_parquet(folder / "items.parquet")
        splits.write_parquet(folder / "splits.parquet")
        _write_manifest(folder, clean, split, settings)
    return Dataset.open(output)


def _split_json(settings: PrepareSettings) -> dict[str, Any]:
    if settings.split == "time":
        return {"kind": "time", "valid_from": settings.valid_from, "test_from": settings.test_from}
    return {"kind": settings.split}


def _write_manifest(folder: Path, clean: Clean, split: Split, settings: PrepareSettings) -> None:
    files = {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "data_hash": data_hash_of(files, _split_json(settings), clean.actions.names, clean.actions.positives),
        "settings": settings.to_json(),
        "num_users": len(clean.user_ids),
        "num_items": len(clean.item_ids),
        "num_events": clean.events.height,
        "num_slates": 0,
        "actions": list(clean.actions.names),
        "positives": list(clean.actions.positives),
        "negatives": list(clean.actions.negatives),
        "surfaces": clean.surfaces,
        "clock": clean.clock,
        "max_timestamp": int(clean.events["timestamp"].max()),
        "split": _split_json(settings),
        "counts": clean.counts,
        "dropped": clean.dropped,
        "notes": clean.notes,
        "item_features": list(settings.item_features),
        "user_features": list(settings.user_features),
        "text": None,
        "files": files,
    }
    write_json(folder / MANIFEST_FILE, manifest)


def prepare_frames(
    interactions: Any,
    items: Any = None,
    users: Any = None,
    impressions: Any = None,
    *,
    output: Path,
    **settings: Any,
) -> Dataset:
    """Prepare polars or pandas frames.

    Args:
        interactions: events, in the columns of the command line's tables.
        items: the catalogue.
        users: columns of users.
        impressions: slates.
        output: the folder to write.
        settings: fields of :class:`PrepareSettings`.

    Raises:
        InputError: the first thing that is wrong.
    """
    named = {"interactions": interactions, "items": items, "users": users, "impressions": impressions}
    tables = {name: as_frame(table, name) for name, table in named.items() if table is not None}
    return prepare_tables(tables, Path(output), PrepareSettings(**settings))
