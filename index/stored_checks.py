"""What tensors of a file must hold before anything indexes with them, and JSON that is read within limits.

A hash only says that a file is what somebody wrote; these checks say that it cannot lead outside other tensors.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "MOST_JSON_BYTES",
    "check_ids",
    "check_offsets",
    "check_header",
    "check_tensor",
    "is_plain_file",
    "strict_json",
]

MOST_JSON_BYTES = 64 * 2**20
"""Largest JSON file that is read; the largest true ones name the categories of columns."""


def is_plain_file(path: Path) -> bool:
    """Whether there is a regular file at a path, itself no symbolic link, pipe or device."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):  # missing, not to be looked at, or a name that no file can have
        return False


def strict_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large or no JSON: nested too deeply, not UTF-8, or with numbers that are none.
    """
    size = path.stat().st_size
    if size > MOST_JSON_BYTES:
        raise ValueError(f"it has {size} bytes, more than the {MOST_JSON_BYTES} that are read")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates are no text
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def check_tensor(name: str, tensor: Tensor | None, dtype: torch.dtype, num_dims: int) -> Tensor:
    """A tensor of a type and a number of dimensions, its floats finite.

    Raises:
        ValueError: it is missing or another one.
    """
    if tensor is None:
        raise ValueError(f"{name} is missing")
    if tensor.dtype != dtype or tensor.dim() != num_dims:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)} and not {dtype} of {num_dims} dimensions")
    if dtype.is_floating_point and tensor.numel() and not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        raise ValueError(f"{name} holds numbers that are not finite")
    return tensor


def check_ids(name: str, tensor: Tensor, low: int, end: int) -> None:
    """Every number is from ``low`` to ``end - 1``.

    Raises:
        ValueError: one is not.
    """
    if tensor.numel() and not (int(tensor.min()) >= low and int(tensor.max()) < end):
        raise ValueError(f"{name} must be from {low} to {end - 1}, got {int(tensor.min())} to {int(tensor.max())}")


def check_offsets(name: str, tensor: Tensor, last: int) -> None:
    """Numbers that rise from 0 to ``last`` without falling.

    Raises:
        ValueError: they do not.
    """
    if not len(tensor) or int(tensor[0]) != 0 or int(tensor[-1]) != last or bool((tensor.diff() < 0).any()):
        raise ValueError(f"{name} must rise from 0 to {last}")


def check_header(header: Mapping[str, Any], **kinds: type) -> None:
    """Every named entry of a header has its type.

    Raises:
        ValueError: one is missing or of another type.
    """
    for name, kind in kinds.items():
        value = header.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{name} must be {kind.__name__}, got {str(value)[:80]!r}")
