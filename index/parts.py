"""Folders of hashed parts: a JSON file names every part with its SHA-256, checked before anything reads the part.

Parts are never written in place, since a process may still map the old bytes: each is written beside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recsys.index.stored_checks import is_plain_file, strict_json

__all__ = ["REMEDY", "checked_parts", "write_parts"]

REMEDY = "copy the folder again from where it was saved, or build and save it again"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum(header: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in header.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_parts(
    folder: Path, manifest: str, header: Mapping[str, Any], parts: Mapping[str, Callable[[Path], object]]
) -> None:
    """Write every part, then the manifest that makes them valid.

    Args:
        folder: made where it is missing; an older copy in it is replaced part by part, the manifest last.
        manifest: name of the JSON file.
        header: what the manifest says beside the hashes: ``format``, ``format_version`` and what the reader wants.
        parts: file name to a function that writes the file at the path it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, dict[str, Any]] = {}
    for name, write in parts.items():
        partial = folder / f".{name}.{os.getpid()}.partial"
        try:
            write(partial)
            partial.chmod(0o644)  # safetensors makes its files unreadable for others
            listed[name] = {"sha256": _sha256(partial), "bytes": partial.stat().st_size}
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    full = {**header, "parts": listed}
    partial = folder / f".{manifest}.{os.getpid()}.partial"
    text = json.dumps({**full, "checksum": _checksum(full)}, indent=2, sort_keys=True, allow_nan=False) + "\n"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / manifest)


def checked_parts(
    folder: Path, manifest: str, *, format: str, format_version: int, parts: tuple[str, ...]
) -> dict[str, Any]:
    """Read the manifest and check the hash of every part.

    Args:
        folder: what :func:`write_parts` wrote.
        manifest: name of the JSON file.
        format: the format it must name.
        format_version: the only version understood.
        parts: names that must be listed; others may be listed too and are checked alike.

    Returns:
        The manifest.

    Raises:
        ValueError: one line naming the file that is missing, truncated, changed or foreign, and what to do.
    """
    path = folder / manifest
    if path.exists() and not is_plain_file(path):
        raise ValueError(f"{path} is no plain file (links are not followed); {REMEDY}")
    try:
        header = strict_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing; {REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {REMEDY}") from None
    if not isinstance(header, dict) or header.get("format") != format:
        raise ValueError(f"{path} does not describe a {format} folder; {REMEDY}")
    if header.get("format_version") != format_version:
        raise ValueError(
            f"{path} has format version {header.get('format_version')}, this version reads {format_version}; "
            "build and save it again with this version"
        )
    if header.get("checksum") != _checksum(header):
        raise ValueError(f"{path} was changed after it was written; {REMEDY}")
    listed = header.get("parts")
    if not isinstance(listed, dict) or not all(
        isinstance(part, dict) and isinstance(part.get("sha256"), str) and isinstance(part.get("bytes"), int)
        for part in listed.values()
    ):
        raise ValueError(f"{path} does not say the size and SHA-256 of every part; {REMEDY}")
    for name in parts:
        if name not in listed:
            raise ValueError(f"{path} lists no {name}; {REMEDY}")
    for name, part in sorted(listed.items()):
        file = folder / name
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{path} names {name!r}, a file outside its folder; {REMEDY}")
        if file.exists() and not is_plain_file(file):
            raise ValueError(f"{file} is no plain file (links are not followed); {REMEDY}")
        if not is_plain_file(file):
            raise ValueError(f"{file} is missing; {REMEDY}")
        if file.stat().st_size != part["bytes"]:
            raise ValueError(f"{file} has {file.stat().st_size} bytes instead of {part['bytes']}; {REMEDY}")
        if _sha256(file) != part["sha256"]:
            raise ValueError(f"{file} does not have the SHA-256 that {manifest} lists (damaged or foreign); {REMEDY}")
    return header
