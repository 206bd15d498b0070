"""Semantic IDs of a dataset's items, as files hold them.

Suffixes: I = items, L = levels, J = codes predicted at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.code_settings import KINDS
from recsys.pipelines.made_codes import CODES_FILE, read_sids
from recsys.vocabulary import IdMap

__all__ = ["ItemCodes", "read_codes"]


@dataclass(frozen=True, slots=True)
class ItemCodes:
    """Codes of every item of a dataset, in internal order. A kind that there is none of is None, its sizes empty."""

    codes_IL: Tensor | None
    """[I, L] int64, generated one after the other."""
    sizes: tuple[int, ...]
    parallel_IJ: Tensor | None
    """[I, J] int64, long codes that are predicted all at once."""
    parallel_sizes: tuple[int, ...]
    set_IJ: Tensor | None = None
    """[I, J] int64, codes of a set: each block of item vectors has its own."""
    set_sizes: tuple[int, ...] = ()


def read_codes(path: Path, dataset: Dataset) -> ItemCodes:
    """Read the codes of a dataset's items.

    Args:
        path: the folder that `recsys tokenize` wrote, or a Parquet file of ``item_id`` and some of ``codes``,
            ``parallel_codes`` and ``set_codes`` (lists of integers from 0, all of one length). The sizes of a file's
            codebooks are those that its codes need, a folder's are known. Items that the dataset does not know are left
            aside.

    Raises:
        InputError: the file cannot be read, or an item has no codes or wrong ones.
    """
    about = read_sids(path) if path.is_dir() else None
    file = path / CODES_FILE if path.is_dir() else path
    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{file} cannot be read as semantic IDs ({str(error).splitlines()[0][:120]})") from None
    if "item_id" not in frame.columns or not set(KINDS) & set(frame.columns):
        raise InputError(
            f"{file} needs the columns item_id and codes (or parallel_codes, set_codes), it has {frame.columns}"
        )
    row_I = IdMap(frame["item_id"]).index(dataset.items["item_id"])
    if (row_I < 0).any():
        missing = dataset.items["item_id"][int(np.flatnonzero(row_I < 0)[0])]
        raise InputError(f"{file} has no codes of the item {missing!r} of {dataset.path}; run `recsys tokenize` on it")
    stated = {} if about is None else {kind: tuple(said["sizes"]) for kind, said in about["kinds"].items()}
    found = [
        _codes(file, frame[kind], row_I, stated.get(kind)) if kind in frame.columns else (None, ()) for kind in KINDS
    ]
    return ItemCodes(*found[0], *found[1], *found[2])


def _codes(
    file: Path, column: pl.Series, row_I: NDArray[np.int64], sizes: tuple[int, ...] | None
) -> tuple[Tensor, tuple[int, ...]]:
    if not isinstance(column.dtype, pl.List) or not column.dtype.inner.is_integer():
        raise InputError(f"{file}: {column.name} must be a list of integers, got {column.dtype}")
    lengths = column.list.len().unique()
    if len(lengths) != 1 or not lengths[0] or column.list.eval(pl.element().is_null().any()).list.first().any():
        raise InputError(f"{file}: every item needs as many {column.name}, got {sorted(lengths.to_list())[:3]}")
    codes = column.list.to_array(int(lengths[0])).to_numpy()[row_I].astype(np.int64)
    if codes.min() < 0:
        raise InputError(f"{file}: {column.name} must be at least 0, got {int(codes.min())}")
    return torch.from_numpy(codes), sizes or tuple(int(code) + 1 for code in codes.max(0))
