"""What parts of a bundle must be before they are loaded, and what they must hold before they are used.

A hash says that a part is what somebody wrote, not that it was written by this package. Sizes are compared before
anything of that size is allocated.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import InputError, shown
from recsys.model_config import ModelConfig

if TYPE_CHECKING:
    from recsys.events import EventLog

__all__ = ["check_counts", "check_events", "check_plain_files", "check_rows", "check_words", "inside"]

_LONGEST = 1_000
"""Characters of the name of a part."""
MOST_FILES = 10_000
"""Files of a bundle or data set."""


def inside(folder: Path, name: str, remedy: str) -> Path:
    """The path of a part by the name that a manifest gives it.

    Args:
        folder: of the manifest.
        name: relative, with ``/``.
        remedy: the end of the message.

    Raises:
        InputError: it leads out of the folder, is missing, or is no plain file; links are not followed.
    """
    parts = PurePosixPath(name).parts
    if (
        not parts
        or PurePosixPath(name).is_absolute()
        or ".." in parts
        or not name.isprintable()
        or len(name) > _LONGEST
    ):
        raise InputError(f"{folder} names {shown(name)}, a file outside of it; {remedy}")
    path = folder
    for part in parts:
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):  # a name that no file can have is as good as missing
            raise InputError(f"{folder / name} is missing; {remedy}") from None
        if stat.S_ISLNK(mode):
            raise InputError(f"{path} is a symbolic link, and links are not followed; {remedy}")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is no plain file; {remedy}")
    return path


def check_plain_files(folder: Path, listed: dict[str, str], marker: str) -> None:
    """Nothing stands in a folder but what its manifest lists; hidden files are left alone.

    Raises:
        InputError: something does, or there are too many files.
    """
    if len(listed) > MOST_FILES:
        raise InputError(f"{folder} lists {len(listed)} files, more than {MOST_FILES}; write the bundle again")
    for number, file in enumerate(sorted(folder.rglob("*"))):
        if number > 2 * MOST_FILES:
            raise InputError(f"{folder} holds more than {2 * MOST_FILES} files; remove those of others")
        name = file.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if not hidden and not stat.S_ISDIR(os.lstat(file).st_mode) and name not in listed and name != marker:
            raise InputError(f"{file} is no part of this bundle; remove it, or write the bundle again")


def check_words(manifest: dict[str, Any]) -> None:
    """What ``bundle.json`` says is of the types that the reader counts on.

    Raises:
        ValueError: something is not.
    """
    for name in ("actions", "surfaces", "retrievers"):
        words = manifest.get(name)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{name} must be a list of names")
        if len(set(words)) != len(words) or len(words) > 65_536:
            raise ValueError(f"{name} must be different names, at most 65536")
    for name in ("num_items", "num_users", "max_timestamp"):
        if type(manifest.get(name, 0)) is not int or not -(2**62) < manifest.get(name, 0) < 2**62:
            raise ValueError(f"{name} must be a 64-bit integer")
    for name in ("user_content", "content"):
        blocks = manifest.get(name) or []
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise ValueError(f"{name} must be a list of blocks")
    stop = 0
    for block in manifest.get("user_content") or []:
        if not isinstance(block.get("name"), str) or block.get("start") != stop or type(block.get("stop")) is not int:
            raise ValueError("user_content must be blocks of columns, one after the other")
        if block["stop"] < stop:
            raise ValueError("user_content must be blocks of columns, one after the other")
        stop = block["stop"]
    for name in ("memory_weights", "hybrid_weights", "hybrid_head"):
        if not isinstance(manifest.get(name), dict | None):
            raise ValueError(f"{name} must be an object")
    names = (manifest.get("hybrid_head") or {}).get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("hybrid_head must list the names of its features")
    if manifest.get("clock") not in ("real", "order"):
        raise ValueError(f"clock must be 'real' or 'order', got {manifest.get('clock')!r}")


def check_rows(path: Path, num_rows: int, schema: dict[str, Any]) -> None:
    """A Parquet file has so many rows by its footer, and columns of these types, before any of it is read.

    Args:
        schema: column to a polars type, or to a test of one.

    Raises:
        ValueError: it has others.
    """
    lazy = pl.scan_parquet(path, glob=False)
    found = lazy.collect_schema()
    for name, wanted in schema.items():
        if name not in found or not (wanted(found[name]) if callable(wanted) else found[name] == wanted):
            raise ValueError(f"{path.name} has no column {name} of the right type, but {dict(found)}"[:300])
    rows = lazy.select(pl.len()).collect().item()
    if rows != num_rows:
        raise ValueError(f"{path.name} holds {rows} rows and should hold {num_rows}")


def check_events(events: EventLog, config: ModelConfig) -> None:
    """Stored events are of the items, actions and surfaces of the model, each user's in order of time.

    Raises:
        ValueError: they are not.
    """
    last = (1 << config.num_actions) - 1
    for name, column, low, high in (
        ("item", events.item, -1, config.num_items - 1),
        ("yes", events.yes, 0, last),
        ("known", events.known, 0, last),
        ("surface", events.surface, 0, config.num_surfaces - 1),
        ("timestamp", events.timestamp, -(2**62), 2**62),
    ):
        _check_range(name, column, low, high)
    steps_N = np.diff(events.timestamp) < 0
    starts = events.offsets[1:-1]
    steps_N[starts[(starts > 0) & (starts < len(events))] - 1] = False
    if steps_N.any():
        raise ValueError("histories must be in order of time")


def check_counts(name: str, keys_K: NDArray[Any], counts_KX: NDArray[Any], num_columns: int) -> None:
    """Sorted keys and their counts.

    Raises:
        ValueError: they are not.
    """
    if keys_K.dtype != np.int64 or keys_K.ndim != 1 or (np.diff(keys_K) <= 0).any():
        raise ValueError(f"{name}: keys must be rising int64 numbers")
    if counts_KX.dtype.kind != "i" or counts_KX.shape != (len(keys_K), num_columns):
        raise ValueError(f"{name}: counts must be integers {[len(keys_K), num_columns]}, got {list(counts_KX.shape)}")


def _check_range(name: str, column: NDArray[Any], low: int, high: int) -> None:
    if len(column) and not (low <= int(column.min()) and int(column.max()) <= high):
        raise ValueError(f"{name} must be from {low} to {high}, got {int(column.min())} to {int(column.max())}")
