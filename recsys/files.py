"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.index.stored_checks import strict_json

__all__ = [
    "atomic_file",
    "atomic_folder",
    "check_file_output",
    "check_folder_output",
    "check_local",
    "read_json",
    "refusal",
    "sha256_file",
    "write_json",
]

_ELSEWHERE = "write somewhere else"
_REFUSALS = {
    errno.ENOSPC: ("no space is left", "free some, or write to another disk"),
    errno.EDQUOT: ("the quota of the disk is used up", "free some space, or write to another disk"),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.EACCES: ("permission is denied", "change the permissions, or choose another path"),
    errno.EPERM: ("permission is denied", "change the permissions, or choose another path"),
    errno.ENOTDIR: ("a file stands where a folder should be", "choose another path"),
    errno.EEXIST: ("a file stands where a folder should be", "choose another path"),
    errno.EISDIR: ("a folder stands where a file should be", "choose another path"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""What is left of ``s3://`` once it was taken for a path."""
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How polars and safetensors report what the system refused."""


def refusal(error: BaseException) -> str | None:
    """One line for a file that the system would not let anybody write or read; None for any other error.

    >>> refusal(OSError(errno.ENOSPC, "No space left on device", "runs/1/logs"))
    'runs/1/logs: no space is left; free some, or write to another disk'
    >>> refusal(ValueError("our own mistake")) is None
    True
    """
    code, where = None, ""
    if isinstance(error, OSError):
        code, name = error.errno, error.filename2 or error.filename
        if isinstance(name, str):
            path = Path(name)
            where = f"{path.parent if path.name.endswith('.partial') else path}: "
    if code is None:
        found = _RUST_ERROR.search(str(error))
        # torch says that a file could not be written, not why.
        code = int(found[1]) if found else errno.ENOSPC if "PytorchStreamWriter failed writing" in str(error) else None
    if code not in _REFUSALS:
        return None
    what, remedy = _REFUSALS[code]
    return f"{where}{what}; {remedy}"


def check_local(path: Path, what: str) -> None:
    """Refuse the address of another machine, which would become a folder called ``s3:`` on this one.

    Raises:
        InputError: it is one.

    >>> check_local(Path("data/s3:/x"), "--output")
    """
    if _URL.match(str(path)):
        raise InputError(
            f"{what} {path} is a URL; only the input tables of prepare and check-data may be one: give "
            "a path of this machine"
        )


def check_file_output(path: Path, flag: str) -> None:
    """Check before long work that a file can be written at the end of it.

    Raises:
        InputError: it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise InputError(f"{flag} {path} is a folder; give a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{flag} {path}: {folder} is a file, not a folder; choose another path")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{flag} {path}: {folder} may not be written; choose another path")


def check_folder_output(path: Path, *, overwrite: bool = True, marker: str | None = None) -> None:
    """Check before long work that a folder may appear at the end of it.

    Args:
        path, overwrite, marker: see :func:`atomic_folder`.

    Raises:
        InputError: ``path`` is a file or a URL, or exists and may not be replaced.
    """
    check_local(path, "the output")
    path = path.absolute()
    if path.is_file():
        raise InputError(f"{path} is a file; give a folder as output")
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise InputError(f"{path} exists and is not empty; choose another output folder")
        if marker is not None and not (path / marker).exists():
            raise InputError(f"{path} is not empty and holds no {marker}; choose another output folder")


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
        InputError: ``path`` is a file or a URL, or exists and may not be replaced.
    """
    check_folder_output(path, overwrite=overwrite, marker=marker)
    path = path.absolute()
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
