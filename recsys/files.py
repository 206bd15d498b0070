"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.index.stored_checks import strict_json

__all__ = ["atomic_file", "atomic_folder", "read_json", "sha256_file", "write_json"]


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling path to write; on success it is renamed to ``path``, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = True, marker: str | None = None) -> Iterator[Path]:
    """Yield an empty temporary sibling folder; on success it takes the place of ``path``.

    Args:
        path: the folder that appears.
        overwrite: whether an existing folder may be replaced.
        marker: a file name that an existing non-empty folder must hold to be replaced, so that a mistyped
            output path never deletes somebody's data.

    Raises:
        InputError: ``path`` is a file, or exists and may not be replaced.
    """
    path = path.absolute()
    if path.is_file():
        raise InputError(f"{path} is a file; give a folder as output")
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise InputError(f"{path} exists and is not empty; choose another output folder")
        if marker is not None and not (path / marker).exists():
            raise InputError(f"{path} is not empty and holds no {marker}; choose another output folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        partial.chmod(0o755)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.replace(old / "old")
            partial.replace(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is an :class:`InputError` naming it."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file")
        return strict_json(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); write it again with the command that made it") from None
