"""From input tables to the folder of a prepared dataset. The command line and the Python API both come through here.

Suffixes: N = events, U = users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save_file

from recsys.dataset import USER_CONTENT, Dataset, offsets_of
from recsys.errors import InputError
from recsys.files import atomic_folder, sha256_file, write_json
from recsys.manifest import FORMAT, FORMAT_VERSION, MANIFEST_FILE, data_hash_of
from recsys.pipelines.prepare.catalogue import entity_table
from recsys.pipelines.prepare.clean import Clean, action_counts, clean_tables
from recsys.pipelines.prepare.content import Content, item_content
from recsys.pipelines.prepare.interactions import packed_events
from recsys.pipelines.prepare.reading import Table, as_frame
from recsys.pipelines.prepare.settings import PrepareSettings
from recsys.pipelines.prepare.slates import (
    NO_SPLIT,
    TEST,
    TRAIN,
    VALIDATION,
    packed_slates,
    split_by_targets,
    split_by_times,
)
from recsys.pipelines.prepare.splits import Split, cold_targets, held_out_items, leave_one_out, split_by_time
from recsys.pipelines.prepare.user_content import user_content
from recsys.sparse_rows import write_sparse

__all__ = ["PARTS", "check_tables", "prepare_frames", "prepare_tables"]

PARTS = 4
"""Of a preparation: checks, splits, item content, files."""
_SLATE_SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST, "no_split": NO_SPLIT}


def check_tables(given: Mapping[str, Table], settings: PrepareSettings) -> dict[str, Any]:
    """Every check of the preparation without writing anything; returns what the tables hold, for people.

    Raises:
        InputError: the first thing that is wrong.
    """
    clean = clean_tables(given, settings)
    slates = {} if clean.slates is None else {"slates": clean.slates["slate_id"].n_unique()}
    return {
        "users": len(clean.user_ids),
        "items": len(clean.item_ids),
        "events": clean.events.height,
        **slates,
        **{name.replace("_", " "): count for name, count in clean.counts.items()},
        **{f"action {name}": counts["yes"] for name, counts in action_counts(clean).items()},
        "positives": ", ".join(clean.actions.positives),
        "surfaces": ", ".join(clean.surfaces[1:]) or "none",
        "clock": clean.clock,
        **{f"dropped: {reason}": count for reason, count in clean.dropped.items()},
        **{f"note {number}": note for number, note in enumerate(clean.notes, start=1)},
    }


def prepare_frames(
    interactions: Any,
    items: Any = None,
    users: Any = None,
    impressions: Any = None,
    *,
    output: Path | str,
    **settings: Any,
) -> Dataset:
    """Prepare polars or pandas frames.

    Args:
        interactions: events, in the columns of the command line's tables.
        items: the catalogue.
        users: columns of users.
        impressions: slates.
        output: the folder to write.
        settings: fields of :class:`~recsys.pipelines.prepare.settings.PrepareSettings`.

    Raises:
        InputError: the first thing that is wrong.
    """
    named = {"interactions": interactions, "items": items, "users": users, "impressions": impressions}
    tables = {name: as_frame(table, name) for name, table in named.items() if table is not None}
    return prepare_tables(tables, Path(output), PrepareSettings(**settings))


def prepare_tables(
    given: Mapping[str, Table],
    output: Path,
    settings: PrepareSettings,
    *,
    advance: Callable[[int], None] = lambda parts: None,
) -> Dataset:
    """Write the prepared dataset of input tables; nothing appears where anything is wrong.

    Args:
        given: by name.
        output: the folder to write.
        settings: what to make of them.
        advance: told of each of the ``PARTS`` that is done.

    Raises:
        InputError: the first thing that is wrong.
    """
    with atomic_folder(output, marker=MANIFEST_FILE) as folder:
        clean = clean_tables(given, settings)
        advance(1)
        held_I, cold = _hold_out(clean, settings)
        split = _split(clean, settings)
        slates = _slates(clean, split, held_I, settings)
        advance(1)
        items = entity_table(clean.item_ids, "item_id", clean.items)
        content = item_content(items, settings, given["items"].file if "items" in given else "the items table", folder)
        advance(1)

        packed_events(clean.events, clean.surfaces).write_parquet(folder / "events.parquet")
        users = entity_table(clean.user_ids, "user_id", clean.users)
        users.write_parquet(folder / "users.parquet")
        user_blocks: list[dict[str, Any]] = []
        if settings.user_features:
            file = given["users"].file if "users" in given else "the users table"
            user_blocks, user_rows_UK, notes = user_content(users, settings.user_features, file)
            clean.notes += notes
            save_file({"content": user_rows_UK}, folder / USER_CONTENT)
        items.write_parquet(folder / "items.parquet")
        _frame(train_end=split.train_end_U, valid_at=split.valid_at_U, test_at=split.test_at_U).write_parquet(
            folder / "splits.parquet"
        )
        if cold is not None:
            cold.write_parquet(folder / "cold_targets.parquet")
        if slates is not None:
            slates.write_parquet(folder / "slates.parquet")
        _write_content(folder, content)
        write_json(folder / MANIFEST_FILE, _manifest(folder, clean, split, slates, content, user_blocks, settings))
        advance(1)
    return Dataset.open(output)


def _frame(**columns_U: NDArray[np.int64]) -> pl.DataFrame:
    return pl.DataFrame(columns_U, schema=dict.fromkeys(columns_U, pl.Int64))


def _offsets(clean: Clean) -> NDArray[np.int64]:
    return offsets_of(clean.events["user"].to_numpy(), len(clean.user_ids))


def _hold_out(clean: Clean, settings: PrepareSettings) -> tuple[NDArray[np.bool_], pl.DataFrame | None]:
    """Take the events of held-out items out of ``clean``; returns the items, and the targets that come of them."""
    if settings.cold_items is None:
        return np.zeros(len(clean.item_ids), dtype=np.bool_), None
    held_I = held_out_items(clean.item_ids, settings.cold_items)
    held_N = held_I[clean.events["item"].to_numpy()]
    if held_N.all():
        raise InputError(f"--cold-items {settings.cold_items} leaves no event to train on; choose a smaller share")
    row_T, end_T = cold_targets(
        clean.events["user"].to_numpy(),
        (clean.events["yes"].to_numpy() & clean.actions.positive_mask) != 0,
        held_N,
        clean.events["timestamp"].to_numpy(),
        test_from=settings.test_from,
    )
    targets = packed_events(clean.events[row_T], clean.surfaces).select("user", "item", "timestamp", "surface")
    clean.events = clean.events.filter(pl.Series(~held_N))
    clean.counts |= {"held_out_items": int(held_I.sum()), "held_out_events": int(held_N.sum())}
    clean.counts["cold_targets"] = targets.height
    if not targets.height:
        clean.notes.append("No user has a target among the held-out items: cold items cannot be measured.")
    return held_I, targets.with_columns(pl.Series("end", end_T, dtype=pl.Int64))


def _split(clean: Clean, settings: PrepareSettings) -> Split:
    positive_N = (clean.events["yes"].to_numpy() & clean.actions.positive_mask) != 0
    if settings.split == "leave-one-out":
        return leave_one_out(_offsets(clean), positive_N)
    assert settings.valid_from is not None and settings.test_from is not None  # PrepareSettings checks it
    time_N = clean.events["timestamp"].to_numpy()
    if time_N.min() >= settings.valid_from:
        raise InputError(
            f"--valid-from {settings.valid_from}: no event is before it (they run from {time_N.min()} to "
            f"{time_N.max()}), so that none may train; choose a later time"
        )
    return split_by_time(
        _offsets(clean), positive_N, time_N, valid_from=settings.valid_from, test_from=settings.test_from
    )


def _slates(clean: Clean, split: Split, held_I: NDArray[np.bool_], settings: PrepareSettings) -> pl.DataFrame | None:
    if clean.slates is None or clean.slate_columns is None:
        return None
    if settings.split == "leave-one-out":
        flat, num_left_out = split_by_targets(clean.slates, _targets(clean, split))
    else:
        assert settings.valid_from is not None and settings.test_from is not None
        flat, num_left_out = split_by_times(clean.slates, valid_from=settings.valid_from, test_from=settings.test_from)
    if held_I.any():
        # Test slates show them: how a new item is ranked is a question of its own.
        held = pl.Series(held_I[flat["item"].to_numpy()])
        shown = flat.filter(~(held & (flat["split"] != TEST)))
        clean.counts["slate_rows_held_out"] = flat.height - shown.height
        flat = shown
    slates = packed_slates(flat, clean.slate_columns, clean.surfaces)
    clean.counts["slate_rows"] = flat.height
    clean.counts["slate_rows_left_out"] = num_left_out
    for name, number in _SLATE_SPLITS.items():
        clean.counts[f"slates_{name}"] = int((slates["split"] == number).sum())
    return slates


def _targets(clean: Clean, split: Split) -> pl.DataFrame:
    start_U = _offsets(clean)[:-1]
    item_N, time_N = clean.events["item"].to_numpy(), clean.events["timestamp"].to_numpy()
    frame = _frame(user=np.arange(len(start_U)), valid=split.valid_at_U, test=split.test_at_U)
    found = {
        f"{name}_{what}": pl.Series(column_N[np.where(at_U >= 0, start_U + at_U, 0)])
        for name, at_U in (("valid", split.valid_at_U), ("test", split.test_at_U))
        for what, column_N in (("item", item_N), ("time", time_N))
    }
    return frame.with_columns(pl.col("user").cast(pl.UInt32), **found).select(
        "user", *(pl.when(pl.col(name.split("_")[0]) >= 0).then(pl.col(name)).alias(name) for name in found)
    )


def _write_content(folder: Path, content: Content) -> None:
    if content.rows.content_IC is not None:
        save_file({"content": content.rows.content_IC}, folder / "content.safetensors")
    if content.fitted.transform is not None and content.rows.sparse_text_IV is not None:
        content.fitted.transform.save(folder / "text")
        write_sparse(content.rows.sparse_text_IV, folder / "sparse_text.safetensors")


def _manifest(
    folder: Path,
    clean: Clean,
    split: Split,
    slates: pl.DataFrame | None,
    content: Content,
    user_blocks: list[dict[str, Any]],
    settings: PrepareSettings,
) -> dict[str, Any]:
    files = {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    split_json: dict[str, Any] = {"kind": settings.split}
    if settings.split == "time":
        split_json |= {"valid_from": settings.valid_from, "test_from": settings.test_from}
    notes = [*clean.notes, *content.notes]
    counts = {
        **clean.counts,
        "train_events": int(split.train_end_U.sum()),
        "validation_targets": int((split.valid_at_U >= 0).sum()),
        "test_targets": int((split.test_at_U >= 0).sum()),
    }
    for name in ("validation", "test"):
        if counts[f"{name}_targets"] == 0:
            notes.append(f"No user has a {name} target: nothing can be measured there.")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "data_hash": data_hash_of(files, split_json, clean.actions.names, clean.actions.positives),
        "settings": settings.to_json(),
        "num_users": len(clean.user_ids),
        "num_items": len(clean.item_ids),
        "num_events": clean.events.height,
        "num_slates": 0 if slates is None else slates.height,
        "actions": list(clean.actions.names),
        "action_counts": action_counts(clean),
        "positives": list(clean.actions.positives),
        "negatives": list(clean.actions.negatives),
        "surfaces": clean.surfaces,
        "clock": clean.clock,
        "max_timestamp": clean.max_timestamp,
        "split": split_json,
        "counts": counts,
        "dropped": clean.dropped,
        "notes": notes,
        "item_features": list(settings.item_features),
        "user_features": list(settings.user_features),
        "content": content.fitted.blocks,
        "user_content": user_blocks,
        "text": content.text,
        "files": files,
    }
