"""Semantic IDs of a dataset's items, as files hold them.

Suffixes: I = items, L = levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.vocabulary import IdMap

__all__ = ["ItemCodes", "read_codes"]

_FILE = "codes.parquet"


@dataclass(frozen=True, slots=True)
class ItemCodes:
    """Codes of every item of a dataset, in internal order."""

    codes_IL: Tensor
    """[I, L] int64."""
    sizes: tuple[int, ...]
    """Codes of each level."""


def read_codes(path: Path, dataset: Dataset) -> ItemCodes:
    """Read the codes of a dataset's items.

    Args:
        path: a Parquet file of ``item_id`` and ``codes`` (lists of integers from 0, all of one length), or the folder
            that `recsys tokenize` wrote. Items that the dataset does not know are left aside.

    Raises:
        InputError: the file cannot be read, or an item has no codes or wrong ones.
    """
    file = path / _FILE if path.is_dir() else path
    try:
        frame = pl.read_parquet(file, columns=["item_id", "codes"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{file} cannot be read as semantic IDs ({str(error).splitlines()[0][:120]})") from None
    if not isinstance(frame.schema["codes"], pl.List):
        raise InputError(f"{file}: codes must be a list of integers, got {frame.schema['codes']}")
    length = frame["codes"].list.len().unique()
    if len(length) != 1 or frame["codes"].null_count() or not length[0]:
        raise InputError(f"{file}: every item needs as many codes, got {sorted(length.to_list())[:3]}")
    row_I = IdMap(frame["item_id"]).index(dataset.items["item_id"])
    if (row_I < 0).any():
        missing = dataset.items["item_id"][int(np.flatnonzero(row_I < 0)[0])]
        raise InputError(f"{file} has no codes of the item {missing!r} of {dataset.path}; run `recsys tokenize` on it")
    codes = np.stack(frame["codes"].gather(row_I).to_numpy()).astype(np.int64)
    if codes.min() < 0:
        raise InputError(f"{file}: codes must be at least 0, got {int(codes.min())}")
    return ItemCodes(torch.from_numpy(codes), tuple(int(code) + 1 for code in codes.max(0)))
