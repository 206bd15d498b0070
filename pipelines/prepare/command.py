"""The commands ``prepare`` and ``check-data``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.prepare.build import PARTS, check_tables, prepare_tables
from recsys.pipelines.prepare.reading import Table, read_table
from recsys.pipelines.prepare.settings import PrepareSettings, parse_columns, parse_names, parse_time
from recsys.pipelines.prepare.sources import read_source

__all__ = ["check_data", "prepare"]


def prepare(
    interactions: str | None = None,
    items: str | None = None,
    users: str | None = None,
    impressions: str | None = None,
    output: Path | None = None,
    split: str = "leave-one-out",
    valid_from: str | int | None = None,
    test_from: str | int | None = None,
    columns: str | None = None,
    negative: str | None = None,
    positive: str | None = None,
    clock: str = "auto",
    bad_rows: str = "error",
    min_user_events: int = 0,
    min_item_events: int = 0,
    item_features: str | None = None,
    user_features: str | None = None,
    text_encoder: str | None = None,
    cold_items: float | None = None,
    from_: tuple[str, str] | None = None,
) -> None:
    """Make a dataset that can be trained on from an interactions table.

    Args:
        interactions: Parquet or CSV: user_id, item_id, timestamp, action [, unknown, value, surface, time_known].
        items: item_id [, title, text, any columns].
        users: user_id [, any columns].
        impressions: slates: slate_id, user_id, timestamp, item_ids, actions [, surfaces, times, values].
        output: folder to write.
        split: leave-one-out, or time with --valid-from and --test-from.
        valid_from: first moment of the validation period, as the timestamps count, or an ISO date.
        test_from: first moment of the test period.
        columns: names of your columns, as ours=theirs,ours=theirs.
        negative: actions that make no positive, A,B; default those of hide,dislike,hate,report that occur.
        positive: the only actions that make a positive, A,B; default all that are not negative.
        clock: real (seconds), order (timestamps only count), or auto.
        bad_rows: error stops at the first bad row, drop leaves them out and counts them.
        min_user_events: leave out users with fewer events.
        min_item_events: leave out items with fewer events.
        item_features: columns of the items table that the model may read besides the text, A,B; A:category, A:list or
            A:vector says how.
        user_features: columns of the users table that the model may read, A,B; A:category, A:list or A:vector says how.
        text_encoder: folders of sentence-transformers models for the item texts (extra `text`), PATH or NAME=PATH, A,B.
        cold_items: hold this share of the items out of training and validation, chosen by a hash of their ids; a
            user's last event with one is a target of its own, ranked among the whole catalogue by `recsys evaluate`.
        from_: a published data set instead of tables: amazon-2014, amazon-2023, movielens, kuairand or goodbooks, and
            the folder of its unpacked files.
    """
    settings = PrepareSettings(
        split=split,
        valid_from=parse_time("--valid-from", valid_from),
        test_from=parse_time("--test-from", test_from),
        columns=parse_columns(columns),
        negative=parse_names(negative),
        positive=parse_names(positive),
        clock=clock,
        bad_rows=bad_rows,
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        item_features=parse_names(item_features) or (),
        user_features=parse_names(user_features) or (),
        text_encoder=parse_names(text_encoder) or (),
        cold_items=cold_items,
    )
    if output is None:
        raise InputError("prepare needs --output DATA, the folder to write")
    if from_ is not None:
        if any(table is not None for table in (interactions, items, users, impressions)):
            raise InputError("--from stands in the place of --interactions, --items, --users and --impressions")
        tables = read_source(from_[0], Path(from_[1]))
    elif interactions is not None:
        tables = _read(interactions, items, users, impressions)
    else:
        raise InputError("prepare needs --interactions FILE (or --from); `recsys prepare --help` shows an example")
    with progress_bar("prepare", PARTS, unit="parts") as advance:
        dataset = prepare_tables(tables, output, settings, advance=advance)
    _show_dataset(dataset)


def check_data(
    interactions: str | None = None,
    items: str | None = None,
    users: str | None = None,
    impressions: str | None = None,
    columns: str | None = None,
    negative: str | None = None,
    positive: str | None = None,
    clock: str = "auto",
    bad_rows: str = "error",
) -> None:
    """Check tables as prepare does, name the column and row at fault, and say what they hold.

    Args:
        interactions: Parquet or CSV: user_id, item_id, timestamp, action [, unknown, value, surface, time_known].
        items: item_id [, title, text, any columns].
        users: user_id [, any columns].
        impressions: slates: slate_id, user_id, timestamp, item_ids, actions [, surfaces, times, values].
        columns: names of your columns, as ours=theirs,ours=theirs.
        negative: actions that make no positive, A,B.
        positive: the only actions that make a positive, A,B.
        clock: real (seconds), order (timestamps only count), or auto.
        bad_rows: error stops at the first bad row, drop counts them all.
    """
    settings = PrepareSettings(
        columns=parse_columns(columns),
        negative=parse_names(negative),
        positive=parse_names(positive),
        clock=clock,
        bad_rows=bad_rows,
    )
    if interactions is None:
        raise InputError("check-data needs --interactions FILE; `recsys check-data --help` shows an example")
    _show_figures("the tables are in order", check_tables(_read(interactions, items, users, impressions), settings))


def _read(interactions: str, items: str | None, users: str | None, impressions: str | None) -> dict[str, Table]:
    named = {"interactions": interactions, "items": items, "users": users, "impressions": impressions}
    return {name: read_table(path) for name, path in named.items() if path is not None}


def _show_figures(title: str, figures: Mapping[str, Any]) -> None:
    table = RichTable(title=title, show_header=False, title_justify="left")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,}" if isinstance(figure, int) else str(figure))
    stdout_console().print(table)


def _show_dataset(dataset: Dataset) -> None:
    manifest = dataset.manifest
    figures: dict[str, Any] = {
        "users": manifest.num_users,
        "items": manifest.num_items,
        "events": manifest.num_events,
        "slates": manifest.num_slates,
        "actions": ", ".join(manifest.actions),
        "positives": ", ".join(manifest.positives),
        "clock": manifest.clock,
        **{name.replace("_", " "): count for name, count in manifest.counts.items()},
        **{f"dropped: {reason}": count for reason, count in manifest.dropped.items()},
        "data hash": manifest.data_hash[:16],
    }
    _show_figures(str(dataset.path), figures)
    for note in manifest.notes:
        stdout_console().print(f"note: {note}")
