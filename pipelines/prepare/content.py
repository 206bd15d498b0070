"""What a model may know of items besides who took them: their text, and the columns that were asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch

from recsys.errors import InputError
from recsys.pipelines.console import progress_bar
from recsys.pipelines.prepare.settings import PrepareSettings
from recsys.tokenizers.item_columns import MAX_CATEGORIES, READINGS
from recsys.tokenizers.item_content import ENCODERS_FOLDER, ItemContent, ItemRows, item_texts
from recsys.tokenizers.text_encoder import copy_encoder, encoder_name

__all__ = ["Content", "item_content"]

_TAKEN = ("text", "transition")
"""Names that relations of the item graph have already."""
_LONG_WORK = 500
"""Texts from which on encoding shows a progress bar."""


@dataclass(slots=True)
class Content:
    """Item features, and how they were made."""

    fitted: ItemContent
    rows: ItemRows
    text: dict[str, Any] | None = None
    """What the manifest says of the text."""
    notes: list[str] = field(default_factory=list)


def item_content(items: pl.DataFrame, settings: PrepareSettings, file: str, folder: Path) -> Content:
    """Content of a catalogue.

    Args:
        items: one row per item, in internal order.
        settings: which columns and which encoders were asked for.
        file: what messages call the items table.
        folder: of the dataset that is being made; the encoders are copied into it.

    Raises:
        InputError: a column or an encoder cannot be used.
    """
    features = dict(_reading(given, items, file) for given in settings.item_features)
    encoders = _copied_encoders(settings.text_encoder, items, file, folder)
    for name in encoders:
        if name in features:
            raise InputError(
                f"--text-encoder and --item-features both make something called {name}; name the encoder otherwise, "
                f"as in --text-encoder my_{name}={encoders[name]}"
            )
    try:
        fitted, rows = ItemContent.fit(
            items,
            features=features,
            encoders=list(encoders),
            folder=folder,
            device="cuda" if torch.cuda.is_available() else "cpu",
            progress=_progress,
        )
    except ValueError as error:
        raise InputError(
            f"{file}, {error}" if str(error).startswith("column ") else f"--text-encoder: {error}"
        ) from error
    content = Content(fitted, rows)
    if fitted.transform is not None:
        transform = fitted.transform
        content.text = {"kind": "tfidf-svd", "dim": transform.dim, "num_terms": len(transform.vocabulary)}
        if encoders:
            content.text["encoders"] = [{"name": name, "dim": rows.vectors[name].shape[1]} for name in encoders]
    elif "title" in items.columns or "text" in items.columns:
        content.notes.append("No item has a word of text, so that items are known by who took them alone.")
    content.notes += _remarks(fitted, rows)
    return content


def _reading(given: str, items: pl.DataFrame, file: str) -> tuple[str, str | None]:
    """``NAME`` or ``NAME:READING`` as the column's name and how to read it."""
    name, reading = given, None
    if given not in items.columns and given.rpartition(":")[2] in READINGS:
        name, _, reading = given.rpartition(":")
    if name not in items.columns or name == "item_id":
        there = ", ".join(column for column in items.columns if column != "item_id") or "none"
        raise InputError(f"--item-features {given}: {file} has no such column (there are: {there}); check the name")
    if name in ("title", "text") or name in _TAKEN:
        what = "is read as text anyway; leave it out" if name in ("title", "text") else "is taken; rename the column"
        raise InputError(f"--item-features {given}: the name {name} {what}")
    return name, reading


def _copied_encoders(given: Sequence[str], items: pl.DataFrame, file: str, folder: Path) -> dict[str, str]:
    """Name -> path as given; each model copied into the dataset, so that what is used is what is kept."""
    if given and not any(text and re.search(r"\w\w", text) for text in item_texts(items)):
        raise InputError(f"--text-encoder: {file} has no text to encode; leave the flag out")
    named: dict[str, str] = {}
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals or Path(entry).is_dir():
            name, path = encoder_name(Path(entry)), entry
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in _TAKEN or name in named:
            why = "stands twice" if name in named else "cannot be used"
            raise InputError(f"--text-encoder {entry}: the name {name!r} {why}; choose one, as in my_encoder={path}")
        try:
            copy_encoder(Path(path).expanduser(), folder / ENCODERS_FOLDER / name)
        except ValueError as error:
            raise InputError(f"--text-encoder: {error}") from error
        named[name] = path
    return named


@contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    if total < _LONG_WORK:
        yield lambda done: None
        return
    with progress_bar(label, total, "texts") as advance:
        yield advance


def _remarks(fitted: ItemContent, rows: ItemRows) -> Iterator[str]:
    for block in fitted.blocks:
        name, kind = block["name"], block["kind"]
        if kind in ("tfidf-svd", "text-encoder") or rows.content_IC is None:
            continue
        if not rows.content_IC[:, block["start"] : block["stop"]].any():
            yield f"The item feature {name} says nothing: it is empty or the same for every item."
        elif kind == "categories" and block["num_values"] > MAX_CATEGORIES:
            yield (
                f"The item feature {name} has {block['num_values']} values of more than one item; "
                f"the {MAX_CATEGORIES} most frequent are read."
            )
