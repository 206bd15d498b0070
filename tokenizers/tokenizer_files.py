"""The two files of a saved tokenizer: arrays as safetensors, and JSON with their hash and everything else.

Each is written beside its place and renamed, the JSON last, so that a half-written tokenizer is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

__all__ = ["ARRAYS_FILE", "CONFIG_FILE", "read_header", "read_tokenizer", "write_tokenizer"]

CONFIG_FILE = "tokenizer.json"
ARRAYS_FILE = "tokenizer.safetensors"
_MOST_JSON_BYTES = 64 * 2**20
_REMEDY = "copy the folder again from where it was saved, or fit and save it again"


def read_header(path: Path) -> Any:
    """Read a JSON file of limited size; pipes and devices are not opened.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or no JSON.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ValueError(f"it has more than {_MOST_JSON_BYTES} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum(header: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in header.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_tokenizer(folder: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write both files.

    Args:
        folder: made where it is missing; an older tokenizer in it is replaced.
        header: ``format``, ``format_version`` and what the reader wants to know; plain JSON.
        arrays: name to array.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in (ARRAYS_FILE, CONFIG_FILE)}
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial[ARRAYS_FILE])
        partial[ARRAYS_FILE].chmod(0o644)  # safetensors makes its files unreadable for others
        full = {**header, "arrays_sha256": _sha256(partial[ARRAYS_FILE])}
        text = json.dumps({**full, "checksum": _checksum(full)}, indent=2, sort_keys=True, allow_nan=False) + "\n"
        partial[CONFIG_FILE].write_text(text, encoding="utf-8")
        for name, path in partial.items():
            path.replace(folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def read_tokenizer(folder: Path, *, format: str, format_version: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read both files, hashes first.

    Args:
        folder: what :func:`write_tokenizer` wrote.
        format: the format it must name.
        format_version: the only version understood.

    Returns:
        The header and the arrays.

    Raises:
        ValueError: one line naming the file that is missing, changed or foreign, and what to do.
    """
    config, arrays = folder / CONFIG_FILE, folder / ARRAYS_FILE
    try:
        header = read_header(config)
    except OSError:
        raise ValueError(f"{config} is missing; {_REMEDY}") from None
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{config} is not valid JSON ({error}); {_REMEDY}") from None
    if not isinstance(header, dict) or header.get("format") != format:
        raise ValueError(f"{config} does not describe a {format}; {_REMEDY}")
    if header.get("format_version") != format_version:
        raise ValueError(
            f"{config} has format version {header.get('format_version')}, this version reads {format_version}; "
            "fit and save it again with this version"
        )
    if header.get("checksum") != _checksum(header):
        raise ValueError(f"{config} was changed after it was written; {_REMEDY}")
    if arrays.is_symlink() or not arrays.is_file():
        raise ValueError(f"{arrays} is missing; {_REMEDY}")
    if _sha256(arrays) != header.get("arrays_sha256"):
        raise ValueError(f"{arrays} does not have the SHA-256 that {CONFIG_FILE} lists (damaged or foreign); {_REMEDY}")
    try:
        return header, load_file(arrays)
    except SafetensorError as error:
        raise ValueError(f"{arrays} is not readable ({error}); {_REMEDY}") from None
